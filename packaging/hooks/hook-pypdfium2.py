"""The bindings read their version from a file beside them."""

from PyInstaller.utils.hooks import collect_data_files

datas = collect_data_files("pypdfium2")
