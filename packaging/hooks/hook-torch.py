"""What travels of torch. PyInstaller's own recipe imports every part of it to list them; here the files are listed."""

import left_out
from PyInstaller.utils.hooks import PY_DYLIB_PATTERNS, collect_data_files, collect_dynamic_libs

# It reads its own sources as it runs.
module_collection_mode = "pyz+py"
hiddenimports = left_out.modules_of("torch")
datas = collect_data_files("torch", excludes=[f"**/*.{ending}" for ending in left_out.FOR_COMPILERS])
binaries = collect_dynamic_libs("torch", search_patterns=[*PY_DYLIB_PATTERNS, "*.so.*"])
# Links beside the program would mislead it about where its libraries lie.
bindepend_symlink_suppression = ["**/torch/lib/*.so*"]
