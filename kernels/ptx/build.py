"""Compiles kernels/cuda to PTX with the pinned NVRTC and writes it here, with the hash of its sources in its first line.

Usage: build.py [--check]   in an environment with nvidia-cuda-nvrtc-cu12==12.4.127 (`.ci/kernels` makes one)

NVRTC 12.4 writes PTX 8.4, which drivers from 550 on take; a later compiler's PTX they would refuse. --check writes
nothing and fails where what is here is not what would be written.
"""

import ctypes
import hashlib
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = ["all.cu", "attend.cu", "matmul.cu", "prim.cuh", "rows.cu"]
ARCHITECTURES = ["compute_80"]


def library() -> ctypes.CDLL:
    import nvidia.cuda_nvrtc as package

    folder = pathlib.Path(list(package.__path__)[0]) / "lib"
    # NVRTC looks for its built-in declarations by name: they must be loaded before.
    ctypes.CDLL(str(next(folder.glob("libnvrtc-builtins.so.12.4*"))), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(folder / "libnvrtc.so.12"))


def compile_to_ptx(nvrtc: ctypes.CDLL, architecture: str) -> str:
    program = ctypes.c_void_p()
    text = (ROOT / "cuda" / "all.cu").read_bytes()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, b"all.cu", 0, None, None) == 0
    # Folders would be written into the output if they were absolute; prim.cuh has no use for lines.
    options = [f"--gpu-architecture={architecture}", "--std=c++17", "-default-device", f"--include-path={ROOT / 'cuda'}"]
    given = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    code = nvrtc.nvrtcCompileProgram(program, len(options), given)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if code != 0:
        sys.exit(log.value.decode())
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    return ptx.value.decode()


def sources_hash() -> str:
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((ROOT / "cuda" / name).read_bytes())
    return digest.hexdigest()


def main() -> None:
    nvrtc = library()
    for architecture in ARCHITECTURES:
        text = f"// sources {sources_hash()}, NVRTC 12.4.127, {architecture}\n" + compile_to_ptx(nvrtc, architecture)
        path = ROOT / "ptx" / f"{architecture}.ptx"
        if "--check" not in sys.argv:
            path.write_text(text)
        elif path.read_text() != text:
            sys.exit(f"{path.name} is not what its sources give; run .ci/kernels")
        print(f"{path.name}: {len(text) >> 10} KiB")


main()
