//! What `action.yaml` says of an action with the runtime `container`.

use super::is_inside;
use crate::diagnostic::Place;
use crate::reading::{Fields, Report};
use crate::session::CONTAINER_RUNTIME;
use crate::yaml::Node;

/// An image in which the action runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Container {
    pub image: Image,
    /// Where the file says so.
    pub place: Place,
}

/// Where an image is to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// In a registry: `docker.io/library/debian@sha256:…`.
    Registry(String),
    /// A file of the folder, as `docker save` and `podman save` write it; its path there.
    Archive(String),
}

const HELP: &str = "write `image: docker.io/library/debian@sha256:…`, or `image: ./image.tar` for a file of the folder";
const DIGEST_HELP: &str = "add its digest, as in `docker.io/library/debian@sha256:…`: `skopeo inspect --format '{{.Digest}}' \
                           docker://…` prints it, or `podman pull` and `podman image inspect --format '{{.RepoDigests}}'`";

/// Reads `image`.
pub(super) fn read(report: &mut Report, fields: &Fields<'_>) -> Option<Container> {
    let Some(node) = fields.get("image") else {
        report.error(fields.place, "an action with `runtime: container` needs an `image`", Some(HELP.to_owned()));
        return None;
    };
    let image = read_image(report, node)?;
    Some(Container { image, place: node.place })
}

/// Says that it belongs to another runtime.
pub(super) fn refuse(report: &mut Report, fields: &Fields<'_>) {
    if let Some(node) = fields.get("image") {
        let help = Some(format!("write `runtime: {CONTAINER_RUNTIME}` too"));
        report.error(node.place, format!("`image` is for actions with `runtime: {CONTAINER_RUNTIME}`"), help);
    }
}

fn read_image(report: &mut Report, node: &Node) -> Option<Image> {
    let text = report.text(node, "`image`")?;
    if let Some(path) = text.strip_prefix("./") {
        if is_inside(path) {
            return Some(Image::Archive(path.to_owned()));
        }
        let message = format!("`{}` is not the path of a file in the folder of the action", text.escape_debug());
        report.error(node.place, message, Some(HELP.to_owned()));
        return None;
    }
    match reference(text) {
        Ok(image) => Some(Image::Registry(image)),
        Err(Fault { message, help }) => {
            report.error(node.place, format!("`{}` {message}", text.escape_debug()), Some(help.to_owned()));
            None
        }
    }
}

/// What is wrong with the name of an image.
struct Fault {
    message: &'static str,
    help: &'static str,
}

/// The name of an image with its digest, and without its tag: not every engine takes both.
fn reference(text: &str) -> Result<String, Fault> {
    let fault = |message, help| Err(Fault { message, help });
    let Some((name, digest)) = text.split_once('@') else {
        return if is_name(text) {
            fault("has no digest, and may be another image tomorrow", DIGEST_HELP)
        } else {
            fault("is no image", HELP)
        };
    };
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() != 64 || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return fault("has no digest: that is `sha256:` and 64 digits", DIGEST_HELP);
    }
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let name = name[last..].find(':').map_or(name, |colon| &name[..last + colon]);
    if !is_name(name) {
        return fault("is no image", HELP);
    }
    let registry = name.split_once('/').map(|(registry, _)| registry).unwrap_or_default();
    if registry != "localhost" && !registry.contains(['.', ':']) {
        return fault(
            "names no registry, and sites may look in different ones",
            "write `docker.io/library/debian@sha256:…`",
        );
    }
    Ok(format!("{name}@{digest}"))
}

fn is_name(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:/".contains(&byte);
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(is_letter)
        && text.split('/').all(|part| !part.is_empty())
}
