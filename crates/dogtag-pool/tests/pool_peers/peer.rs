//! The peers' programs, and what they are told.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Apr,
    Nginx,
}

/// An operation a line.
pub type Script = Vec<String>;

impl Peer {
    /// What a peer says about each of some scripts.
    pub fn run(self, scripts: &[Script]) -> Vec<Vec<String>> {
        let folder = std::env::var_os("DOGTAG_PEERS").expect("DOGTAG_PEERS: see .ci/pool-peers");
        let program = PathBuf::from(folder).join(match self {
            Self::Apr => "apr",
            Self::Nginx => "nginx",
        });
        let mut child = Command::new(&program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let mut input = child.stdin.take().unwrap();
        let text: String = scripts.iter().flat_map(|script| [script.join("\n"), "\nend\n".into()]).collect();
        let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
        let output = child.wait_with_output().unwrap();
        // If it has ended early, that is what counts.
        _ = writer.join().unwrap();
        assert!(output.status.success(), "{self:?}: {}, one of\n{scripts:#?}", output.status);
        let lines: Vec<String> =
            String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
        let logs: Vec<_> = lines.split(|line| line == "end").map(<[String]>::to_vec).collect();
        assert_eq!(logs.len(), scripts.len() + 1, "{self:?} leaves scripts out");
        logs[..scripts.len()].to_vec()
    }
}
