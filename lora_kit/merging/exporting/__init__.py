"""A merged model in other formats, each read back and compared with the model it was made from."""

from typing import Literal

Target = Literal["gguf", "nf4", "int8"]
GgufType = Literal["f32", "f16", "bf16", "q8_0"]
