//! What a package holds besides the binary: the manual page says what the command line does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use clap_mangen::Man;

/// What no argument says.
const LAST_SECTIONS: &str = r".SH SIGNALS
Of a running \fBtollgate serve\fR:
.TP
\fBSIGHUP\fR
The configuration is read anew. A bad one is refused as a whole, and the old one stays in force.
.TP
\fBSIGUSR2\fR
The binary at the same path is started with \fB\-\-upgrade\fR and takes over, without a pause. Where it cannot, the running process
serves on.
.TP
\fBSIGTERM\fR
Nothing new is served, requests under way are finished, and what was used is brought into the ledger. The second one ends that.
.TP
\fBSIGINT\fR
Requests under way are cut, and billed as far as they came.
.SH FILES
.TP
\fI/etc/tollgate/tollgate.toml\fR
The configuration.
.TP
\fI/var/lib/tollgate\fR
Accounts, ledger and spool of the service.
.TP
\fI$RUNTIME_DIRECTORY/upgrade\fR or \fISPOOL.upgrade\fR
Where a new process finds the one that runs.
.SH EXIT STATUS
0, or 1 after an error, which stderr tells, or 2 after a mistake in the arguments.
";

/// The page, of all commands.
fn page() -> String {
    let mut command = tollgate::cli::command();
    command.build();
    let mut page = Vec::new();
    let whole = Man::new(command.clone()).manual("tollgate");
    whole.render_title(&mut page).unwrap();
    whole.render_name_section(&mut page).unwrap();
    whole.render_synopsis_section(&mut page).unwrap();
    whole.render_description_section(&mut page).unwrap();
    whole.render_options_section(&mut page).unwrap();
    page.extend(b".SH COMMANDS\n");
    add(&command, &mut page);
    page.extend(LAST_SECTIONS.bytes());
    String::from_utf8(page).unwrap()
}

/// The commands below one, each with its own options; those of all stand above.
fn add(command: &clap::Command, page: &mut Vec<u8>) {
    for below in command.get_subcommands().filter(|below| below.get_name() != "help" && !below.is_hide_set()) {
        if below.has_subcommands() {
            add(below, page);
            continue;
        }
        let usage = below.clone().render_usage().to_string();
        let usage = usage.trim_start_matches("Usage: ").replace('-', "\\-");
        page.extend(format!(".SS {usage}\n").bytes());
        let about = below.get_long_about().or(below.get_about()).unwrap().to_string();
        page.extend(format!("{}\n", about.replace('-', "\\-")).bytes());
        for argument in below.get_arguments().filter(|it| !it.is_hide_set() && !it.is_global_set()) {
            let id = argument.get_id().as_str();
            if matches!(id, "help" | "version") {
                continue;
            }
            let Some(help) = argument.get_long_help().or(argument.get_help()) else { continue };
            let mut help = help.to_string();
            if let [default, ..] = argument.get_default_values()
                && argument.get_action().takes_values()
            {
                help.push_str(&format!(" [default: {}]", default.to_string_lossy()));
            }
            let shown = argument.to_string().replace('-', "\\-");
            let help = help.replace('-', "\\-").replace("\n\n", "\n.br\n");
            page.extend(format!(".TP\n\\fB{shown}\\fR\n{help}\n").bytes());
        }
    }
}

#[test]
fn the_manual_page_is_the_command_lines() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/tollgate.1");
    if std::env::var_os("TOLLGATE_WRITE_MAN").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let shipped = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        shipped == page(),
        "packaging/tollgate.1 is of another command line; TOLLGATE_WRITE_MAN=1 cargo test --test packaging writes it anew"
    );
}
