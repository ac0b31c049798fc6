"""A few senses in the format of WordNet 3 (wndb(5WN))."""

from pathlib import Path

SENSES = {
    "noun": [["lexicon", "dictionary", "dictionary_entry"], ["slope", "incline"],
             ["slope", "bank"], ["cat", "true_cat"], ["Paris"]],
    "verb": [["slope", "tilt"]],
    "adj": [["large(a)", "big"]],
    "adv": [],
}  # fmt: skip


def write_wordnet(folder: Path) -> Path:
    """Write index and data of some senses; the first of a word is its most frequent one."""
    for part, senses in SENSES.items():
        licence = "  1 These lines are the licence.\n"
        data, places = licence, {}
        for number, words in enumerate(senses):
            place = f"{number:08d}"
            named = " ".join(f"{word} 0" for word in words)
            data += f"{place} 03 {part[0]} {len(words):02x} {named} 001 @ 00000000 n 0000 | gloss\n"
            for word in words:
                places.setdefault(word.partition("(")[0].lower(), []).append(place)
        lines = [
            f"{word} {part[0]} {len(own)} 1 @ {len(own)} 1 {' '.join(own)}  \n"
            for word, own in sorted(places.items())
        ]
        (folder / f"data.{part}").write_text(data)
        (folder / f"index.{part}").write_text(licence + "".join(lines))
    return folder
