//! One thing that was looked at.

use serde::Serialize;

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// As it should be.
    Good,
    /// Lazy starts work, but not as well as they could, or it could not be looked at.
    Warning,
    /// Containers do not start lazily.
    Problem,
}

/// What was found, why it matters, and what to do.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    /// Short and fixed, for programs.
    pub(crate) check: &'static str,
    pub(crate) state: State,
    pub(crate) what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<String>,
}

impl Finding {
    pub(super) fn good(check: &'static str, what: impl Into<String>) -> Self {
        Self {
            check,
            state: State::Good,
            what: what.into(),
            why: None,
            remedy: None,
        }
    }

    pub(super) fn warning(
        check: &'static str,
        what: impl Into<String>,
        why: &'static str,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            state: State::Warning,
            ..Self::problem(check, what, why, remedy)
        }
    }

    pub(super) fn problem(
        check: &'static str,
        what: impl Into<String>,
        why: &'static str,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            check,
            state: State::Problem,
            what: what.into(),
            why: Some(why),
            remedy: Some(remedy.into()),
        }
    }
}

/// An error with its causes in one line.
pub(super) fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let mut text = error.to_string();
    for cause in causes {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
