//! From tokens to selectors.

use regex::Regex;

use super::scanner::{Scanner, Token};
use super::{Selector, Test};

/// Longest compiled form of a regular expression in bytes: it comes from a client.
const EXPRESSION_MAX: usize = 1 << 20;

/// The selectors of one filter; none for the empty filter.
pub(super) fn parse(filter: &str) -> Result<Vec<Selector>, String> {
    let mut selectors = Vec::new();
    if filter.is_empty() {
        return Ok(selectors);
    }
    let mut scanner = Scanner::new(filter);
    loop {
        selectors.push(selector(&mut scanner)?);
        // White space may follow a comma, but not come before it or at the end.
        match scanner.peek() {
            None => return Ok(selectors),
            Some(',') => scanner.scan(false)?,
            Some(other) => return Err(format!("expected a comma, not \"{}\"", other.escape_default())),
        };
    }
}

fn selector(scanner: &mut Scanner<'_>) -> Result<Selector, String> {
    let path = path(scanner)?;
    if matches!(scanner.peek(), None | Some(',')) {
        let test = Test::Present;
        return Ok(Selector { path, test });
    }
    let test = match scanner.scan(false)? {
        Token::Operator(operator) => match operator.as_str() {
            "==" => Test::Equal(value(scanner, false)?),
            "!=" => Test::NotEqual(value(scanner, false)?),
            "~=" => Test::Matches(compile(&value(scanner, true)?)),
            other => return Err(format!("unknown operator \"{other}\"")),
        },
        other => return Err(format!("expected an operator, not {other:?}")),
    };
    Ok(Selector { path, test })
}

fn path(scanner: &mut Scanner<'_>) -> Result<Vec<String>, String> {
    let mut path = vec![field(scanner)?];
    while scanner.peek() == Some('.') {
        scanner.scan(false)?;
        path.push(field(scanner)?);
    }
    Ok(path)
}

fn field(scanner: &mut Scanner<'_>) -> Result<String, String> {
    match scanner.scan(false)? {
        Token::Field(name) | Token::Quoted(name, '"') => Ok(name),
        other => Err(format!("expected a field, not {other:?}")),
    }
}

fn value(scanner: &mut Scanner<'_>, any_quote: bool) -> Result<String, String> {
    match scanner.scan(true)? {
        Token::Value(value) | Token::Field(value) => Ok(value),
        Token::Quoted(value, quote) if quote == '"' || any_quote => Ok(value),
        other => Err(format!("expected a value, not {other:?}")),
    }
}

fn compile(expression: &str) -> Option<Regex> {
    let compiled = regex::RegexBuilder::new(expression)
        .size_limit(EXPRESSION_MAX)
        .build();
    compiled
        .inspect_err(|error| tracing::warn!(expression, %error, "a filter's expression does not compile"))
        .ok()
}
