//! Sets of sites, as typed expressions over their attributes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::SiteName;
use crate::placement::{Labels, SiteSelector};
use crate::units::parse_size;

/// The attribute that every site has: its name.
pub(super) const SITE: &str = "site";

/// Declared attributes by name.
pub type Attributes = BTreeMap<String, Attribute>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribute {
    pub kind: AttributeKind,
    pub description: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttributeKind {
    /// One of these words.
    Enum(Vec<String>),
    Integer,
    /// A size, as in `4GiB`.
    Bytes,
    /// Numbers with dots between them, compared one by one.
    Version,
    Boolean,
}

/// A value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Literal {
    Text(String),
    Integer(i64),
    Bytes(u64),
    Version(Vec<u64>),
    Boolean(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A set of sites. Its literals are of the types of its attributes: the parser makes no other.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub enum Selector {
    #[default]
    Every,
    Compare {
        attribute: String,
        kind: AttributeKind,
        comparison: Comparison,
        literal: Literal,
    },
    In {
        attribute: String,
        kind: AttributeKind,
        literals: Vec<Literal>,
    },
    Has(String),
    Not(Box<Selector>),
    All(Vec<Selector>),
    Some(Vec<Selector>),
}

/// What a selector says of a site whose attributes may not all be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truth {
    No,
    /// The site does not say, or says something that is no value of the attribute.
    Unknown,
    Yes,
}

/// A site, as a selector sees it.
#[derive(Debug, Clone, Copy)]
pub struct Location<'a> {
    pub name: &'a SiteName,
    pub labels: &'a Labels,
}

impl Selector {
    /// Whether the site is in the set for certain: one that does not say what is asked is not, nor is it in the opposite set.
    pub fn admits(&self, site: Location<'_>) -> bool {
        self.truth(site) == Truth::Yes
    }

    pub fn truth(&self, site: Location<'_>) -> Truth {
        match self {
            Self::Every => Truth::Yes,
            Self::Compare { attribute, kind, comparison, literal } => match value_of(site, attribute, kind) {
                Some(value) => Truth::from(comparison.holds(&value, literal)),
                None => Truth::Unknown,
            },
            Self::In { attribute, kind, literals } => match value_of(site, attribute, kind) {
                Some(value) => Truth::from(literals.contains(&value)),
                None => Truth::Unknown,
            },
            Self::Has(attribute) => Truth::from(attribute == SITE || site.labels.contains_key(attribute)),
            Self::Not(inner) => match inner.truth(site) {
                Truth::No => Truth::Yes,
                Truth::Unknown => Truth::Unknown,
                Truth::Yes => Truth::No,
            },
            Self::All(parts) => parts.iter().map(|part| part.truth(site)).min_by_key(rank).unwrap_or(Truth::Yes),
            Self::Some(parts) => parts.iter().map(|part| part.truth(site)).max_by_key(rank).unwrap_or(Truth::No),
        }
    }
}

impl From<&SiteSelector> for Selector {
    /// Labels are compared as the texts that they are.
    fn from(selector: &SiteSelector) -> Self {
        let equal = |attribute: &str, kind: AttributeKind, text: &str| Self::Compare {
            attribute: attribute.to_owned(),
            kind,
            comparison: Comparison::Equal,
            literal: Literal::Text(text.to_owned()),
        };
        let named = |name: &SiteName| equal(SITE, AttributeKind::Enum(Vec::new()), name.as_str());
        let names = (!selector.names.is_empty()).then(|| Self::Some(selector.names.iter().map(named).collect()));
        let labels =
            selector.labels.iter().map(|(label, value)| equal(label, AttributeKind::Enum(vec![value.clone()]), value));
        Self::All(names.into_iter().chain(labels).collect())
    }
}

impl From<bool> for Truth {
    fn from(truth: bool) -> Self {
        if truth { Self::Yes } else { Self::No }
    }
}

fn rank(truth: &Truth) -> u8 {
    match truth {
        Truth::No => 0,
        Truth::Unknown => 1,
        Truth::Yes => 2,
    }
}

impl Comparison {
    fn holds(self, value: &Literal, literal: &Literal) -> bool {
        match self {
            Self::Equal => value == literal,
            Self::NotEqual => value != literal,
            Self::Less => value < literal,
            Self::LessOrEqual => value <= literal,
            Self::Greater => value > literal,
            Self::GreaterOrEqual => value >= literal,
        }
    }
}

impl AttributeKind {
    /// Reads a value; nothing if the text is none.
    pub fn read(&self, text: &str) -> Option<Literal> {
        match self {
            Self::Enum(words) => words.iter().find(|word| *word == text).cloned().map(Literal::Text),
            Self::Integer => text.parse().ok().map(Literal::Integer),
            Self::Bytes => parse_size(text).ok().map(Literal::Bytes),
            Self::Version => read_version(text).map(Literal::Version),
            Self::Boolean => text.parse().ok().map(Literal::Boolean),
        }
    }

    pub(super) fn is_ordered(&self) -> bool {
        matches!(self, Self::Integer | Self::Bytes | Self::Version)
    }

    pub(super) fn described(&self) -> String {
        match self {
            Self::Enum(words) => format!("one of {}", words.join(", ")),
            Self::Integer => "an integer".to_owned(),
            Self::Bytes => "a size, as 4GiB".to_owned(),
            Self::Version => "a version, as '1.2.3'".to_owned(),
            Self::Boolean => "true or false".to_owned(),
        }
    }
}

/// `1.2` and `1.2.0` are the same.
fn read_version(text: &str) -> Option<Vec<u64>> {
    let mut numbers: Vec<u64> = text.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    while numbers.len() > 1 && numbers.last() == Some(&0) {
        numbers.pop();
    }
    Some(numbers)
}

fn value_of(site: Location<'_>, attribute: &str, kind: &AttributeKind) -> Option<Literal> {
    if attribute == SITE {
        return Some(Literal::Text(site.name.as_str().to_owned()));
    }
    kind.read(site.labels.get(attribute)?)
}
