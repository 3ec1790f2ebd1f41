"""Help of a command, written in lines of a file and shown in lines of a terminal."""


def flowing(text: str) -> str:
    """Paragraphs, which an empty line parts, without the line ends inside them: each is as wide as the terminal."""
    return text.replace("\n\n", "\0").replace("\n", " ").replace("\0", "\n\n")
