//! The systemd unit of the service, with the options of this host.

use std::path::Path;

use anyhow::Context as _;

use super::files::HEADER;

/// File name of the unit.
pub(crate) const NAME: &str = "sluice-snapshotter.service";
/// The unit as it is for a program in the usual place without options.
const TEXT: &str = include_str!("../service/sluice-snapshotter.service");
/// The line that starts the service.
const START: &str = "ExecStart=";
/// The command in it, before its options.
const COMMAND: &str = "sluice snapshotter";

/// The unit that starts `program` with `options` beside those that every host has.
///
/// # Errors
/// When the path of the program or an option cannot stand in a unit.
pub(super) fn text(program: &Path, options: &[String]) -> anyhow::Result<String> {
    let program = program
        .to_str()
        .with_context(|| format!("the path {} is not UTF-8", program.display()))?;
    let mut words = vec![program, "snapshotter"];
    words.extend(options.iter().map(String::as_str));
    for word in &words {
        let is_plain = |c: char| c.is_ascii_graphic() && !"\"'\\%$;".contains(c);
        anyhow::ensure!(
            word.chars().all(is_plain),
            "\"{word}\" has characters that need quoting in a systemd unit; write the unit by hand"
        );
    }
    let line = |line: &str| match line.strip_prefix(START).and_then(|rest| rest.split_once(COMMAND)) {
        Some((_, rest)) => format!("{START}{}{rest}\n", words.join(" ")),
        None => format!("{line}\n"),
    };
    Ok(format!("{HEADER}{}", TEXT.lines().map(line).collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_starts_this_program_with_these_options() {
        let options = ["--cri-proxy".to_owned(), "/run/c.sock".to_owned()];
        let text = text(Path::new("/opt/sluice"), &options).unwrap();
        let starts: Vec<_> = text.lines().filter(|line| line.starts_with(START)).collect();
        assert_eq!(starts.len(), 1, "{text}");
        let expected = "ExecStart=/opt/sluice snapshotter --cri-proxy /run/c.sock";
        assert!(starts[0].starts_with(expected), "{text}");
        assert!(text.contains("Type=notify"), "{text}");
    }

    #[test]
    fn words_that_systemd_would_read_otherwise_are_refused() {
        for bad in ["/opt/my sluice", "/opt/%n", "/opt/$x"] {
            assert!(text(Path::new(bad), &[]).is_err(), "{bad}");
        }
    }
}
