//! Text with values in it: `{name}` is a value, `[[ … ]]` a part that is left out if a value in it is not there, and
//! `{{word}}` is `{word}` itself. A line, or a word of a command, with a value that is not there is left out; one with a
//! value of which there are several is there for each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use regex::Regex;

/// What a value, a part that may be left out, and braces that mean themselves look like.
static HOLES: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\{\{(?<plain>[^{}\s]+)\}\}|\[\[(?<part>[^\n]*?\{[a-z_]+\}[^\n]*?)\]\]|\{(?<value>[a-z_]+)\}")
        .expect("it is a regular expression")
});

/// What stands for the names: text, and for some names any number of texts.
#[derive(Debug, Clone, Default)]
pub(super) struct Values {
    pub single: BTreeMap<&'static str, String>,
    /// Each with what all its names are in one line.
    pub several: Vec<BTreeMap<&'static str, String>>,
}

impl Values {
    pub(super) fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.single.insert(name, value.into());
    }

    pub(super) fn add<const N: usize>(&mut self, names: [(&'static str, String); N]) {
        self.several.push(names.into());
    }
}

/// A line, or a word.
#[derive(Debug, Clone)]
pub(super) struct Pattern(Vec<Part>);

#[derive(Debug, Clone)]
enum Part {
    Text(String),
    Value(&'static str),
    Optional(Pattern),
}

impl Pattern {
    /// # Errors
    /// With the name that is none of those that are known.
    pub(super) fn new(text: &str, known: &[&'static str]) -> Result<Self, String> {
        let (mut parts, mut at) = (Vec::new(), 0);
        for found in HOLES.captures_iter(text) {
            let whole = found.get_match();
            parts.push(Part::Text(text[at..whole.start()].to_owned()));
            at = whole.end();
            parts.push(match (found.name("plain"), found.name("part"), found.name("value")) {
                (Some(plain), _, _) => Part::Text(format!("{{{}}}", plain.as_str())),
                (None, Some(part), _) => Part::Optional(Self::new(part.as_str(), known)?),
                (None, None, value) => {
                    let name = value.map_or("", |value| value.as_str());
                    Part::Value(known.iter().find(|one| **one == name).ok_or_else(|| name.to_owned())?)
                }
            });
        }
        parts.push(Part::Text(text[at..].to_owned()));
        Ok(Self(parts))
    }

    pub(super) fn names(&self) -> BTreeSet<&'static str> {
        let of_part = |part: &Part| match part {
            Part::Text(_) => BTreeSet::new(),
            Part::Value(name) => [*name].into(),
            Part::Optional(inner) => inner.names(),
        };
        self.0.iter().flat_map(of_part).collect()
    }

    /// The lines that it is with these values: most often one.
    pub(super) fn fill(&self, values: &Values, several: &[&'static str]) -> Vec<String> {
        let names = self.names();
        if !names.iter().any(|name| several.contains(name)) {
            return self.with(&|name| values.single.get(name)).into_iter().collect();
        }
        let of_this = values.several.iter().filter(|one| one.keys().any(|name| names.contains(name)));
        of_this.filter_map(|one| self.with(&|name| one.get(name).or_else(|| values.single.get(name)))).collect()
    }

    fn with<'a>(&self, value: &dyn Fn(&str) -> Option<&'a String>) -> Option<String> {
        let mut filled = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Value(name) => filled.push_str(value(name)?),
                Part::Optional(inner) => filled.push_str(&inner.with(value).unwrap_or_default()),
            }
        }
        Some(filled)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::*;

    fn filled(text: &str) -> Vec<String> {
        let mut values = Values::default();
        values.set("cpus", "2");
        values.set("name", "x");
        values.add([("option", "-a".to_owned())]);
        values.add([("resource", "m".to_owned()), ("amount", "3".to_owned())]);
        values.add([("option", "-b".to_owned())]);
        let (known, several) =
            (["cpus", "name", "gpus", "option", "resource", "amount"], ["option", "resource", "amount"]);
        Pattern::new(text, &known).unwrap().fill(&values, &several)
    }

    #[test]
    fn what_is_not_there_takes_its_part_or_its_line_with_it_and_what_is_there_twice_has_two_lines() {
        assert_eq!(filled("-l ncpus={cpus}[[:gpus={gpus}]] {name}"), ["-l ncpus=2 x"]);
        assert_eq!(filled("-l ncpus={cpus}[[:of={name}]]"), ["-l ncpus=2:of=x"]);
        assert_eq!(filled("--gpus={gpus}"), Vec::<String>::new());
        assert_eq!(filled("#X {option} {name}"), ["#X -a x", "#X -b x"]);
        assert_eq!(filled("-l {resource}={amount}"), ["-l m=3"]);
        assert_eq!(filled("plain"), ["plain"]);
    }

    #[test]
    fn braces_and_brackets_that_are_no_values_stay() {
        assert_eq!(
            filled("${HOME} {print $1} {{id}} {id.f58} [[ -n $x ]]"),
            ["${HOME} {print $1} {id} {id.f58} [[ -n $x ]]"]
        );
        assert_eq!(Pattern::new("{nme}", &["name"]).unwrap_err(), "nme");
        assert_eq!(Pattern::new("a[[b{nme}]]", &["name"]).unwrap_err(), "nme");
    }
}
