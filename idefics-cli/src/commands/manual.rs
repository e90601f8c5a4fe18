//! `idefics completions` and `idefics man`

use std::io::{self, Write};

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;
use crate::failure::Failure;

/// Prints the completion script for a shell.
pub(crate) fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "idefics", &mut script);
    Ok(io::stdout().lock().write_all(&script)?)
}

/// Prints the manual page: first the program, then each command.
pub(crate) fn man() -> Result<(), Failure> {
    let mut program = Cli::command();
    program.build();
    let mut page = Vec::new();
    let man = clap_mangen::Man::new(program.clone());
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    write_as_is(&mut page, &program)?;
    for command in program.get_subcommands().filter(|command| command.get_name() != "help") {
        // Global options are listed only once, for the program.
        let command = command.clone().mut_args(|arg| if arg.is_global_set() { arg.hide(true) } else { arg });
        let man = clap_mangen::Man::new(command.clone());
        let mut sections = Vec::new();
        man.render_description_section(&mut sections)?;
        man.render_synopsis_section(&mut sections)?;
        man.render_options_section(&mut sections)?;
        let sections = String::from_utf8_lossy(&sections).replace("\n.SH ", "\n.SS ");
        writeln!(page, ".SH \"IDEFICS {}\"", command.get_name().to_uppercase())?;
        writeln!(
            page,
            "{}",
            sections.strip_prefix(".SH ").map_or_else(|| sections.clone(), |rest| format!(".SS {rest}"))
        )?;
        write_as_is(&mut page, &command)?;
    }
    Ok(io::stdout().lock().write_all(&page)?)
}

/// Writes the text that follows the options in `--help`, which contains formats and examples. Its line breaks are
/// preserved.
fn write_as_is(page: &mut Vec<u8>, command: &Command) -> io::Result<()> {
    let Some(text) = command.get_after_help() else { return Ok(()) };
    writeln!(page, ".SS \"EXAMPLES AND FORMATS\"\n.nf")?;
    for line in text.to_string().lines() {
        // Without `\&`, roff would treat a line with a leading dot or apostrophe as a macro call.
        writeln!(page, "\\&{}", line.replace('\\', "\\e"))?;
    }
    writeln!(page, ".fi")
}
