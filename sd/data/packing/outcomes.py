"""Outcomes of input rows that are not packed, as reports count them."""

from sd.errors import one_line

BAD, FILTERED, NOT_DOWNLOADED, UNPAIRED = "bad", "filtered", "not downloaded", "unpaired"


class BadRow(Exception):  # noqa: N818 - an outcome that is counted, not a failure
    """A row that cannot be packed: `reason` is one of a few texts to count by, `detail` what was seen."""

    outcome = BAD

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, one_line(detail)


class Filtered(BadRow):
    """A row that a filter of the user's took out; it does not count as bad."""

    outcome = FILTERED


class NotDownloaded(BadRow):
    """A row whose image failed to download when the data set was made; it does not count as bad."""

    outcome = NOT_DOWNLOADED


class Unpaired(BadRow):
    """A text that no image belongs to, such as a folder's notes.txt; it does not count as bad."""

    outcome = UNPAIRED
