"""Teachers: declared by a name, run as a model, or read from a cache on disk.

They give signals; losses compare them.
"""

from typing import TYPE_CHECKING, Any

from hf_stages.core.exports import Exports

if TYPE_CHECKING:  # written by `python -m tests.support.typed_exports`
    from hf_stages.teachers.declared import CachedTeacher as CachedTeacher
    from hf_stages.teachers.declared import Teacher as Teacher

_EXPORTS = Exports(__name__, ("teachers",))


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
