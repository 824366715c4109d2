//! Files that the tests take in.

/// The sample of the contract, as it stands there.
pub(crate) fn contract() -> &'static str {
    const CONTRACT: &str = include_str!("../../../docs/contract.md");
    let start = CONTRACT.find("workflow: contract\n").expect("the contract has its sample");
    let length = CONTRACT[start..].find("```").expect("a block has an end");
    &CONTRACT[start..start + length]
}
