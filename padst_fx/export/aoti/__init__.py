"""Packages of AOTInductor: models that run without Python."""

from padst_fx.export.aoti.package import export_aoti

__all__ = ["export_aoti"]
