"""Receive studies by C-STORE: from the AE titles that are allowed, as long as the disk has room."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.uid import UID
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

from sacl.dicom.stack import decoder_fault
from sacl.errors import ConfigError
from sacl_node.store import Store


def listen(
    store: Store, host: str, port: int, title: str, allowed: Sequence[str]
) -> ThreadedAssociationServer:
    """Answer C-ECHO and C-STORE in threads of their own, until `shutdown` of what is returned.

    All kinds of objects are accepted, since some senders give up a study of which one is not; what
    is no CT or MR image is left out. Only transfer syntaxes are offered that can be decoded here.

    Raises:
        ConfigError: the port is taken, or an AE title is none.
    """
    syntaxes = [UID(uid) for uid in ALL_TRANSFER_SYNTAXES if decoder_fault(uid) is None]
    try:
        node = AE(ae_title=title)
        node.require_calling_aet = list(allowed)
    except ValueError as error:
        raise ConfigError(f"serve: an AE title has 1 to 16 characters ({error})") from error
    node.require_called_aet = True
    node.add_supported_context(Verification)
    for context in AllStoragePresentationContexts:
        node.add_supported_context(UID(str(context.abstract_syntax)), syntaxes)

    studies: dict[Association, set[str]] = {}

    def keep(event: Event) -> int:
        status, study = store.add(event.encoded_dataset())
        studies.setdefault(event.assoc, set()).add(study)
        return status

    def close(event: Event) -> None:
        for study in studies.get(event.assoc, ()):
            store.queue.close(study)

    def forget(event: Event) -> None:
        studies.pop(event.assoc, None)

    handlers = [
        *((evt.EVT_C_STORE, keep), (evt.EVT_C_ECHO, lambda event: 0x0000)),
        *((evt.EVT_RELEASED, close), (evt.EVT_CONN_CLOSE, forget)),
    ]
    try:
        server = node.start_server((host, port), block=False, evt_handlers=handlers)  # type: ignore[arg-type]
    except OSError as error:
        raise ConfigError(f"serve: port {port} of {host}: {error.strerror}") from error
    assert server is not None
    return server
