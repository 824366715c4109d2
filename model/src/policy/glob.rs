//! Patterns for names: `*` is any text, `?` any one character.

/// Whether the pattern is for the name. Takes time proportional to the product of both lengths at most.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut read) = (0, 0);
    // Where the last `*` stands, and how much of the name it is taken to stand for.
    let mut star: Option<(usize, usize)> = None;
    while read < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(wanted) if *wanted == '?' || *wanted == name[read] => (at, read) = (at + 1, read + 1),
            Some(_) | None => match &mut star {
                Some((position, taken)) => {
                    *taken += 1;
                    (at, read) = (*position + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|left| *left == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_text_and_a_question_mark_one_character() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("climate-*", "climate-2", true),
            ("climate-*", "weather", false),
            ("*.nc", "a.nc", true),
            ("*a*b", "xaxbxb", true),
            ("*a*b", "xaxbx", false),
            ("r?w", "raw", true),
            ("r?w", "rw", false),
            ("?", "é", true),
            ("raw", "raw-csv", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
