//! Storage that tests/run.sh starts beside the tests, and says where it is.

/// What the environment says of the S3 server, one value for each of the variables; nothing, loudly, without one.
///
/// # Panics
/// Under CI, which has one.
pub fn s3<const N: usize>(variables: [&str; N]) -> Option<[String; N]> {
    told("S3 server", variables)
}

/// The container in Azure's emulator; nothing, loudly, without one.
///
/// # Panics
/// Under CI, which has one.
pub fn azurite() -> Option<String> {
    told("Azurite", ["ATOLL_TEST_AZURE"]).map(|[container]| container)
}

fn told<const N: usize>(what: &str, variables: [&str; N]) -> Option<[String; N]> {
    let values = variables.map(|name| std::env::var(name).ok());
    if values.iter().all(Option::is_some) {
        return Some(values.map(Option::unwrap_or_default));
    }
    eprintln!("SKIPPED: no {what}; tests/run.sh starts one and sets {}", variables.join(", "));
    assert!(std::env::var_os("CI").is_none(), "CI has {what}");
    None
}
