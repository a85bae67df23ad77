//! What came of every row by every way, printed once when the last trial has ended.

use std::fmt::Write as _;

use vrun_supervisor::survival::{ROWS, Row};

use crate::Way;
use crate::harness::User;

/// What came of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    /// As the table of the source says, for this reason.
    Refused(&'static str),
    /// Come to its end, with this difference, of which the table of the source tells.
    Changed(&'static str),
    /// Why.
    Failed(String),
}

/// All results so far.
pub(crate) struct Table {
    left: usize,
    results: Vec<Result>,
}

struct Result {
    row: &'static Row,
    user: User,
    outcomes: [Outcome; 6],
    /// Nothing was left behind either.
    clean: bool,
}

impl Table {
    pub(crate) const fn new() -> Self {
        Self {
            left: 0,
            results: Vec::new(),
        }
    }

    /// That many trials will come.
    pub(crate) fn expect(&mut self, trials: usize) {
        self.left = trials;
    }

    /// One has ended; the last one prints everything.
    pub(crate) fn add(&mut self, row: &'static Row, user: User, outcomes: [Outcome; 6], clean: bool) {
        self.results.push(Result {
            row,
            user,
            outcomes,
            clean,
        });
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            for user in [User::Ordinary, User::Root] {
                print!("{}", self.of(user));
            }
        }
    }

    fn of(&self, user: User) -> String {
        let mut results: Vec<_> = self.results.iter().filter(|result| result.user == user).collect();
        results.sort_by_key(|result| ROWS.iter().position(|row| row.id == result.row.id));
        if results.is_empty() {
            return String::new();
        }
        let width = results.iter().map(|result| result.row.id.len()).max().unwrap_or(0);
        let mut text = format!("\nThe matrix, as {}\n{:18}{:width$}", user.name(), "", "");
        for way in Way::ALL {
            let _ = write!(text, "  {:7}", way.name());
        }
        text.push('\n');
        let (mut last, mut failed) = (None, 0);
        for result in results.iter() {
            let family = result.row.family.name();
            let shown = if last == Some(family) { "" } else { family };
            last = Some(family);
            let _ = write!(text, "{shown:18}{:width$}", result.row.id);
            let mut reasons = Vec::new();
            for outcome in &result.outcomes {
                let word = match outcome {
                    Outcome::Passed => "passed",
                    Outcome::Refused(reason) | Outcome::Changed(reason) => {
                        if !reasons.contains(reason) {
                            reasons.push(*reason);
                        }
                        if matches!(outcome, Outcome::Refused(_)) {
                            "refused"
                        } else {
                            "changed"
                        }
                    }
                    Outcome::Failed(_) => "FAILED",
                };
                let _ = write!(text, "  {word:7}");
            }
            let fine = result
                .outcomes
                .iter()
                .all(|outcome| !matches!(outcome, Outcome::Failed(_)));
            if fine && !result.clean {
                text.push_str("  FAILED: something was left behind");
            }
            failed += usize::from(!fine || !result.clean);
            let _ = writeln!(
                text,
                "{}{}",
                if reasons.is_empty() { "" } else { "  " },
                reasons.join("; ")
            );
        }
        let _ = writeln!(text, "{} rows, {failed} failed", results.len());
        text
    }
}
