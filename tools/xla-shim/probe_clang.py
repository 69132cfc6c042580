"""Whether the libclang in a folder can do what bindgen asks of it: probe_clang.py FOLDER HEADERS

It has to load, to be recent enough, and to find the C library's headers. HEADERS is a folder with those that belong to
the compiler, as bindgen gets it.
"""

import ctypes
import glob
import os
import re
import sys

folder, headers = sys.argv[1:]
names = [name for pattern in ("libclang.so", "libclang-*.so", "libclang.so.*", "libclang-*.so.*")
         for name in glob.glob(os.path.join(glob.escape(folder), pattern)) if "clang-cpp" not in name]
if not names:
    sys.exit(f"no libclang in {folder}")
try:
    clang = ctypes.CDLL(names[0])
except OSError as error:
    sys.exit(f"{error}")


class String(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("flags", ctypes.c_uint)]


class Unsaved(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("text", ctypes.c_char_p), ("length", ctypes.c_ulong)]


def text(string):
    clang.clang_getCString.restype = ctypes.c_char_p
    clang.clang_getCString.argtypes = [String]
    return (clang.clang_getCString(string) or b"").decode()


clang.clang_getClangVersion.restype = String
version = text(clang.clang_getClangVersion())
major = re.search(r"version (\d+)", version)
if not major or int(major[1]) < 9:
    sys.exit(f"{names[0]} is too old ({version})")

source = b"#include <stdbool.h>\n#include <stddef.h>\n#include <stdint.h>\nbool a; size_t b; int64_t c;\n"
clang.clang_createIndex.restype = ctypes.c_void_p
clang.clang_parseTranslationUnit.restype = ctypes.c_void_p
clang.clang_parseTranslationUnit.argtypes = [ctypes.c_void_p, ctypes.c_char_p,
                                             ctypes.POINTER(ctypes.c_char_p), ctypes.c_int,
                                             ctypes.POINTER(Unsaved), ctypes.c_uint, ctypes.c_uint]
arguments = (ctypes.c_char_p * 2)(b"-isystem", os.fsencode(headers))
unit = clang.clang_parseTranslationUnit(clang.clang_createIndex(0, 0), b"probe.h", arguments, 2,
                                        Unsaved(b"probe.h", source, len(source)), 1, 0)
if not unit:
    sys.exit(f"{names[0]} cannot parse")
clang.clang_getNumDiagnostics.argtypes = [ctypes.c_void_p]
clang.clang_getDiagnostic.argtypes = [ctypes.c_void_p, ctypes.c_uint]
clang.clang_getDiagnostic.restype = ctypes.c_void_p
clang.clang_getDiagnosticSpelling.argtypes = [ctypes.c_void_p]
clang.clang_getDiagnosticSpelling.restype = String
clang.clang_getDiagnosticSeverity.argtypes = [ctypes.c_void_p]
ERROR = 3
for i in range(clang.clang_getNumDiagnostics(unit)):
    diagnostic = clang.clang_getDiagnostic(unit, i)
    if clang.clang_getDiagnosticSeverity(diagnostic) >= ERROR:
        sys.exit(f"{names[0]}: {text(clang.clang_getDiagnosticSpelling(diagnostic))}")
