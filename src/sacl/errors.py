"""What can go wrong, in one line each: where, what, got and expected, the remedy."""


class SaclError(Exception):
    """A mistake that the user can mend; the command line prints it as one line, exit code 2."""


class ConfigError(SaclError):
    """A setting has an unknown name, a wrong type or an impossible value."""


class DataError(SaclError):
    """A file, a scan, a label map or a cohort is not what it should be."""


class NoSeriesError(DataError):
    """A scan has no DICOM series onto which its result could be written."""


class SetAsideError(SaclError):
    """Cases killed their workers, again and again; all others are done. The exit code is 1."""


class DeviceError(SaclError):
    """The device that was asked for is not there."""


class LostRankError(SaclError):
    """A process that trains together with others has lost one of them; exit code 1."""


class WorkspaceError(SaclError):
    """The work directory lacks a stage's result, or holds another configuration's."""
