"""margay-cpu as assembly, function by function: what the static models of `arm.py` and `x86.py` read."""
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def compiled(target, *flags):
    """margay-cpu's assembly for that target, with symbols that say what a generic function was made for."""
    flags = " ".join(["-Csymbol-mangling-version=v0", "-Ccodegen-units=1", *flags])
    target_dir = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "mca"
    variable = f"CARGO_TARGET_{target.upper().replace('-', '_')}_RUSTFLAGS"
    environment = {**os.environ, variable: flags, "CARGO_TARGET_DIR": str(target_dir)}
    where = target_dir / target / "release" / "deps"
    for old in where.glob("margay_cpu-*.s"):
        old.unlink()
    # Touched so that cargo compiles it again where nothing changed and the assembly was removed.
    (ROOT / "crates/margay-cpu/src/lib.rs").touch()
    run(
        ["cargo", "rustc", "--release", "-p", "margay-cpu", "--lib", "--target", target, "--", "--emit", "asm"],
        cwd=ROOT,
        env=environment,
    )
    return next(where.glob("margay_cpu-*.s"))


def functions(assembly, prefix, comment):
    """Lines of each function by its name without what `prefix` matches; no directives, no comments."""
    found, name = {}, None
    for line in run(["c++filt"], input=assembly.read_text()).splitlines():
        if re.match(r"^[^\s.#].*:$", line):
            name = re.sub(prefix, "", line[:-1])
            found[name] = []
        elif line.startswith(".Lfunc_end"):
            name = None
        elif name and not re.match(rf"\s+\.|\s*{comment}|\s*$", line):
            found[name].append(line)
    return found
