"""Collects torch's files. PyInstaller's own hook imports every module to list them; this one lists files."""

import left_out
from PyInstaller.utils.hooks import PY_DYLIB_PATTERNS, collect_data_files, collect_dynamic_libs

# Torch reads its own sources at run time.
module_collection_mode = "pyz+py"
hiddenimports = left_out.modules_of("torch")
datas = collect_data_files("torch", excludes=[f"**/*.{ending}" for ending in left_out.FOR_COMPILERS])
binaries = collect_dynamic_libs("torch", search_patterns=[*PY_DYLIB_PATTERNS, "*.so.*"])
# Links beside the program would mislead it about the place of its libraries.
bindepend_symlink_suppression = ["**/torch/lib/*.so*"]
