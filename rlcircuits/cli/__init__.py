"""The shell's way in, one module a command; a package that adds commands finds the kinds of options here."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
