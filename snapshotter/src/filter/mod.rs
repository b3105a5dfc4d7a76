//! containerd's filter language.
//!
//! A request lists filters; a snapshot is meant when any of them matches. A filter is a list of selectors separated by
//! commas, all of which must match:
//!
//! ```text
//! filter    = [ selector { "," selector } ]            the empty filter matches everything
//! selector  = path [ operator value ]                   a path alone asks for presence
//! path      = field { "." field }
//! field     = name | quoted                             name: letters, digits, "_"
//! operator  = "==" | "!=" | "~="                        equal, not equal, regular expression
//! value     = bare | quoted                             bare: up to a comma or white space
//! quoted    = "…"; after "~=" also /…/ and |…|          escapes as in Go
//! ```
//!
//! `!=` also matches what lacks the field, and so does `~=` with an expression that matches nothing. A regular expression
//! that does not compile matches nothing. containerd finds a layer that was claimed by mounting with such a filter, so the
//! language has to be its own, to the letter.

mod parser;
mod scanner;

use regex::Regex;

use crate::{Error, ErrorKind};

/// What a filter can look at.
pub trait Fields {
    /// The value at `path`; `None` when there is none.
    fn field(&self, path: &[String]) -> Option<&str>;
}

/// Filters of one request.
#[derive(Debug)]
pub struct Filter {
    /// Matches when any matches; empty matches everything.
    any: Vec<Vec<Selector>>,
}

#[derive(Debug)]
pub(crate) struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    /// `None`: the expression does not compile.
    Matches(Option<Regex>),
}

impl Filter {
    /// Parses the filters of a request.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] with the filter and what is wrong with it.
    pub fn parse(filters: &[String]) -> Result<Self, Error> {
        let any = filters
            .iter()
            .map(|text| {
                parser::parse(text).map_err(|reason| {
                    Error::new(ErrorKind::InvalidArgument, format!("filter \"{text}\": {reason}"))
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { any })
    }

    /// Whether `object` is meant.
    pub fn matches(&self, object: &impl Fields) -> bool {
        self.any.is_empty()
            || self
                .any
                .iter()
                .any(|all| all.iter().all(|selector| selector.matches(object)))
    }

    /// The value that the one-part path `field` must have in everything that matches, if the filter says so.
    pub(crate) fn required(&self, field: &str) -> Option<&str> {
        let [all] = &self.any[..] else { return None };
        all.iter().find_map(|selector| match &selector.test {
            Test::Equal(value) if selector.path.len() == 1 && selector.path[0] == field => {
                Some(value.as_str())
            }
            _ => None,
        })
    }
}

impl Selector {
    fn matches(&self, object: &impl Fields) -> bool {
        let value = object.field(&self.path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value == Some(wanted),
            Test::NotEqual(unwanted) => value.unwrap_or_default() != unwanted,
            Test::Matches(expression) => expression
                .as_ref()
                .is_some_and(|expression| expression.is_match(value.unwrap_or_default())),
        }
    }
}

#[cfg(test)]
mod tests;
