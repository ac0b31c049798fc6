"""Exporting a merged model to other formats, each read back and compared."""
