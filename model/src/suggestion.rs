//! "Did you mean": the known word that is nearest to an unknown one.

/// The known word that a person most likely meant, if one is near enough.
pub fn nearest<'known>(word: &str, known: impl IntoIterator<Item = &'known str>) -> Option<&'known str> {
    let lower = word.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| {
            let shorter = word.len().min(candidate.len());
            *distance < shorter && *distance <= usize::max(shorter / 3, 1)
        })
        .min()
        .map(|(_, candidate)| candidate)
}

/// What to say about an unknown word: the one that was meant, or all that there are.
pub fn did_you_mean<'known>(word: &str, known: impl IntoIterator<Item = &'known str> + Clone) -> Option<String> {
    if let Some(near) = nearest(word, known.clone()) {
        return Some(format!("did you mean `{near}`?"));
    }
    const SHOWN_MAX: usize = 16;
    let words: Vec<&str> = known.into_iter().collect();
    let list = |words: &[&str]| words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    match words.len() {
        0 => None,
        1..=SHOWN_MAX => Some(format!("known: {}", list(&words))),
        _ => Some(format!("known: {} and {} more", list(&words[..SHOWN_MAX]), words.len() - SHOWN_MAX)),
    }
}
