"""Makes PyTorch load without NVIDIA's libraries.

PyTorch's wheel on the Python package index is built for GPUs. Its libraries depend on NVIDIA's (libcudart, libcublas, ...), and the
loader needs all of them although a computation on the CPU calls none. If they are not installed, this script compiles one library
with all missing functions, each of which returns "no device", and creates symbolic links to it under the names of the missing
libraries. It does not change PyTorch's CPU code.
"""

import importlib.util
import pathlib
import re
import subprocess
import sys
import tempfile

NO_DEVICE = 100  # cudaErrorNoDevice: PyTorch concludes that there is no GPU


NVIDIA = re.compile(r"(lib)?_{0,2}(cu|nccl|nvshmem|nvrtc|nvtx|nvJitLink)")


def lines(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def symbols(library, kind):
    """Returns the dynamic symbols of one kind, `--undefined-only` or `--defined-only`: name to version, which may be empty."""
    found = [line.split()[-1].replace("@@", "@").partition("@") for line in lines("nm", "-D", kind, library)]
    return {name: version for name, _, version in found}


def needed(library):
    """Returns the names of the libraries that a library depends on."""
    return {m[1] for line in lines("readelf", "-d", library) if (m := re.search(r"NEEDED.*\[(.+)\]", line))}


def missing(libraries):
    """Returns what NVIDIA's libraries would provide: functions with their versions, and the libraries' names."""
    undefined, defined, names = {}, set(), set()
    for library in libraries:
        undefined |= symbols(library, "--undefined-only")
        defined |= symbols(library, "--defined-only").keys()
        names |= needed(library)
    functions = {n: v for n, v in undefined.items() if n not in defined and NVIDIA.match(n)}
    return functions, {n for n in names if NVIDIA.match(n)} - {library.name for library in libraries}


def compile_into(library, functions):
    """Compiles a library of functions that return "no device", each with its symbol version."""
    text, versions = [], {}
    for name, version in sorted(functions.items()):
        if re.search("String|ErrorName", name):
            text.append(f'const char *{name}(void) {{ return "no NVIDIA library is installed"; }}')
        else:
            text.append(f"int {name}(void) {{ return {NO_DEVICE}; }}")
        versions.setdefault(version, []).append(name)
    # Functions without a version are exported without an entry in the version script.
    script = [f"{version} {{ global: {'; '.join(names)}; }};" for version, names in versions.items() if version]
    with tempfile.TemporaryDirectory() as scratch:
        source, map_file = pathlib.Path(scratch, "stand_ins.c"), pathlib.Path(scratch, "versions")
        source.write_text("\n".join(text))
        map_file.write_text("\n".join(script))
        # -fno-builtin: the compiler knows some of the names as builtins with other arguments.
        subprocess.run(["cc", "-shared", "-fPIC", "-w", "-fno-builtin", source, "-o", library,
                        f"-Wl,--version-script={map_file}"], check=True)


def main():
    spec = importlib.util.find_spec("torch")
    folder = pathlib.Path(spec.submodule_search_locations[0]) / "lib"
    if not (folder / "libtorch_cuda.so").exists() or (folder.parent.parent / "nvidia").exists():
        return  # a build for CPUs, or NVIDIA's libraries are installed
    functions, names = missing(sorted(folder.glob("*.so*")))
    library = folder / "libno_nvidia.so"
    compile_into(library, functions)
    for name in names:
        (folder / name).symlink_to(library.name)
    print(f"replaced {len(functions)} functions of {len(names)} NVIDIA libraries")


if __name__ == "__main__":
    sys.exit(main())
