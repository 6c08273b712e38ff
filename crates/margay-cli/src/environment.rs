//! What the command reads of its environment: variables, and whether a person is looking.

use std::io::{IsTerminal, stderr, stdin, stdout};

/// The instruction set that `MARGAY_ISA` asks for; unset and empty mean the best there is.
pub(crate) fn isa() -> Option<String> {
    std::env::var("MARGAY_ISA").ok().filter(|isa| !isa.is_empty())
}

/// True where a person types.
pub(crate) fn stdin_is_terminal() -> bool {
    stdin().is_terminal()
}

/// True where a person reads the answer.
pub(crate) fn stdout_is_terminal() -> bool {
    stdout().is_terminal()
}

/// True where a person reads the messages.
pub(crate) fn stderr_is_terminal() -> bool {
    stderr().is_terminal()
}

/// True where stderr may be coloured: on a terminal that can, unless `NO_COLOR` is set. Source: <https://no-color.org>.
pub(crate) fn stderr_has_colours() -> bool {
    stderr_is_terminal() && colours_are_welcome()
}

/// The same of stdout.
pub(crate) fn stdout_has_colours() -> bool {
    stdout_is_terminal() && colours_are_welcome()
}

fn colours_are_welcome() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
    !refused && !dumb
}
