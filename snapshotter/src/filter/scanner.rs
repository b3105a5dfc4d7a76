//! Cuts a filter into tokens. What a character means depends on where it stands: after an operator, everything up to a
//! comma or white space is one value.

/// A piece of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    End,
    /// With its quotes removed and its escapes resolved; and the quote it was written with.
    Quoted(String, char),
    Value(String),
    Field(String),
    /// `,` or `.`
    Separator(char),
    Operator(String),
}

/// Reads tokens from the front of a filter.
#[derive(Debug)]
pub(super) struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(filter: &'a str) -> Self {
        Self { rest: filter }
    }

    /// The next character, which may be white space.
    pub(super) fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    /// The next token; where `value_expected`, a bare word may have any printable characters.
    pub(super) fn scan(&mut self, value_expected: bool) -> Result<Token, String> {
        self.rest = self.rest.trim_start();
        let Some(first) = self.peek() else {
            return Ok(Token::End);
        };
        Ok(match first {
            '"' | '/' | '|' => Token::Quoted(self.quoted(first)?, first),
            ',' | '.' => Token::Separator(self.next().unwrap_or(first)),
            '=' | '!' | '~' => Token::Operator(self.take_while(|c| matches!(c, '=' | '!' | '~'))),
            _ if value_expected && is_value(first) => Token::Value(self.take_while(is_value)),
            _ if is_field(first) => Token::Field(self.take_while(is_field)),
            _ => return Err(format!("unexpected \"{}\"", first.escape_default())),
        })
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next();
        self.rest = chars.as_str();
        next
    }

    fn take_while(&mut self, belongs: impl Fn(char) -> bool) -> String {
        let end = self.rest.find(|c| !belongs(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken.to_owned()
    }

    /// A quoted text, which ends on the same line.
    fn quoted(&mut self, quote: char) -> Result<String, String> {
        self.next();
        let mut plain = Vec::new();
        loop {
            match self.next() {
                None | Some('\n') => return Err("a quoted text does not end".to_owned()),
                Some(end) if end == quote => break,
                Some('\\') => self.escape(quote, &mut plain)?,
                Some(other) => plain.extend(other.encode_utf8(&mut [0; 4]).bytes()),
            }
        }
        String::from_utf8(plain).map_err(|_| "a quoted text is not UTF-8".to_owned())
    }

    /// What follows a backslash. Octal and `\x` escapes are bytes, `\u` and `\U` are characters.
    fn escape(&mut self, quote: char, plain: &mut Vec<u8>) -> Result<(), String> {
        let byte = match self.next() {
            Some('a') => 7,
            Some('b') => 8,
            Some('f') => 12,
            Some('n') => b'\n',
            Some('r') => b'\r',
            Some('t') => b'\t',
            Some('v') => 11,
            Some('\\') => b'\\',
            Some(c) if c == quote && c.is_ascii() => u8::try_from(c).unwrap_or_default(),
            Some('x') => byte(self.number(0, 2, 16)?)?,
            Some(c) if c.is_digit(8) => byte(self.number(c.to_digit(8).unwrap_or_default(), 2, 8)?)?,
            Some(c @ ('u' | 'U')) => {
                let digits = if c == 'u' { 4 } else { 8 };
                let number = self.number(0, digits, 16)?;
                let character = char::from_u32(number).ok_or("an escape is no character")?;
                plain.extend(character.encode_utf8(&mut [0; 4]).bytes());
                return Ok(());
            }
            _ => return Err("unknown escape in a quoted text".to_owned()),
        };
        plain.push(byte);
        Ok(())
    }

    /// Exactly `digits` more digits of a number that begins with `high`.
    fn number(&mut self, high: u32, digits: usize, radix: u32) -> Result<u32, String> {
        let mut number = high;
        for _ in 0..digits {
            let digit = self
                .next()
                .and_then(|c| c.to_digit(radix))
                .ok_or("an escape lacks digits")?;
            number = number.wrapping_mul(radix) | digit;
        }
        Ok(number)
    }
}

fn byte(number: u32) -> Result<u8, String> {
    u8::try_from(number).map_err(|_| "an escape is more than a byte".to_owned())
}

fn is_field(c: char) -> bool {
    c == '_' || c.is_ascii_alphanumeric()
}

fn is_value(c: char) -> bool {
    c != ',' && !c.is_whitespace() && !c.is_control()
}
