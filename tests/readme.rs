//! The README says what is true: its tables are those of the source, and the commands and flags that it names exist.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// The name of a table's markers, and what is to be between them.
type Generated = (&'static str, fn() -> String);

const TABLES: [Generated; 2] = [
    ("syscalls", vrun_remote_io::syscalls::markdown),
    ("survival", vrun_supervisor::survival::markdown),
];

fn readme() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

/// With `UPDATE_README=1` the tables are written instead.
#[test]
fn the_tables_are_those_of_the_source() {
    let text = readme();
    let mut wanted = text.clone();
    for (name, table) in TABLES {
        let (begin, end) = (format!("<!-- {name}:begin -->\n"), format!("<!-- {name}:end -->"));
        let (before, rest) = wanted.split_once(&begin).expect("the README has the begin marker");
        let (_, after) = rest.split_once(&end).expect("the README has the end marker");
        wanted = format!("{before}{begin}{}{end}{after}", table());
    }
    if env::var_os("UPDATE_README").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
        fs::write(path, wanted).unwrap();
    } else {
        assert!(text == wanted, "UPDATE_README=1 cargo test --test readme");
    }
}

/// What a command's `--help` prints; `None` if it does not know itself.
fn help(command: &[&str]) -> Option<String> {
    let binary = match command[0] {
        "vrun" => env!("CARGO_BIN_EXE_vrun"),
        "vmigrate" => env!("CARGO_BIN_EXE_vmigrate"),
        "vctl" => env!("CARGO_BIN_EXE_vctl"),
        "vrund" => env!("CARGO_BIN_EXE_vrund"),
        other => panic!("{other} is none of ours"),
    };
    let mut help = Command::new(binary);
    help.args(&command[1..])
        .arg("--help")
        .env("VRUN_HOME", env!("CARGO_TARGET_TMPDIR"));
    let output = help.output().unwrap();
    output
        .status
        .success()
        .then(|| String::from_utf8(output.stdout).unwrap())
}

/// The command lines of the README, without prompts: those in code spans and those in indented blocks.
fn command_lines(text: &str) -> Vec<Vec<&str>> {
    let prompted = text
        .lines()
        .filter_map(|line| line.strip_prefix("    ")?.split_once("$ ").map(|(_, line)| line));
    let spans = text
        .lines()
        .filter(|line| !line.starts_with("    "))
        .flat_map(|line| line.split('`').skip(1).step_by(2));
    let words = prompted.chain(spans).map(|line| {
        let words = line.split_whitespace().skip_while(|word| word.contains('='));
        // What follows is the program's.
        words
            .take_while(|word| !["--", "&", ">"].contains(word))
            .collect::<Vec<_>>()
    });
    words
        .filter(|words| matches!(words.first(), Some(&("vrun" | "vmigrate" | "vctl" | "vrund"))))
        .collect()
}

#[test]
fn commands_and_flags_exist() {
    let text = readme();
    let mut named: BTreeMap<Vec<&str>, Vec<&str>> = BTreeMap::new();
    for words in command_lines(&text) {
        let own = if words[0] == "vctl" { 2 } else { 1 };
        let flags = named.entry(words.iter().take(own).copied().collect()).or_default();
        // An explanation follows after several spaces; no flag is in one.
        flags.extend(
            words
                .iter()
                .skip(own)
                .filter(|word| word.starts_with('-') && word.len() > 1),
        );
    }
    let mut seen = 0;
    for (command, flags) in &named {
        let help = help(command).unwrap_or_else(|| panic!("there is no `{}`", command.join(" ")));
        for flag in flags {
            let known = help
                .split(|c: char| c.is_whitespace() || ",[]=".contains(c))
                .any(|word| word == *flag);
            assert!(known, "`{}` has no {flag}", command.join(" "));
            seen += 1;
        }
    }
    assert!(
        named.len() >= 12 && seen >= 10,
        "the README names too little: {named:?}"
    );
}
