import logging

from autorun.analysis import analysis


@analysis("Caption", version="1.0")
def caption(text: str, *, shout: bool) -> dict[str, str]:
    if text == "unreadable":
        print("opening it")
        logging.getLogger(__name__).warning("it has no pixels")
        raise ValueError(text)
    return {"text": text.upper() if shout else text}


@analysis("Length", version="1.0")
def length(text: str) -> int:
    return len(text)
