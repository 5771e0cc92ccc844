from autorun.runner import QuerySetRunner
from tests.library.models import Photo


class CaptionRunner(QuerySetRunner):
    DATA_MODEL = Photo
    ANALYSIS = "Caption"
    ANALYSIS_VERSION = "1.0"
    ANALYSIS_CONFIGURATION = {"shout": True}
    INPUT_KEY = "text"
    INPUT_FIELDS = ("caption",)


class LengthRunner(QuerySetRunner):
    DATA_MODEL = Photo
    ANALYSIS = "Length"
    ANALYSIS_VERSION = "1.0"
    INPUT_KEY = "text"
    INPUT_FIELDS = ("caption",)
    DEPENDS_ON = (CaptionRunner,)
    ON_SAVE = False
