"""PDFium's library, and the file that tells the bindings which build it is."""

from PyInstaller.utils.hooks import collect_data_files, collect_dynamic_libs

binaries = collect_dynamic_libs("pypdfium2_raw")
datas = collect_data_files("pypdfium2_raw")
