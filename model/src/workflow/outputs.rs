//! The outputs of a workflow file, and where they are published.

use indexmap::IndexMap;

use super::held::{Outside, OutsideUrl, OutsideUrlError};
use crate::diagnostic::Place;
use crate::expression::{Expression, Reader};
use crate::id::SiteName;
use crate::reading::{Fields, Report};
use crate::value::Type;
use crate::yaml::{Kind, Node};

/// An output that a step publishes.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) output: String,
    pub(super) value: Expression,
    pub(super) at: PublishedAt,
    pub(super) place: Place,
}

/// Where an output is published.
#[derive(Debug)]
pub(super) struct PublishedAt {
    pub(super) target: Outside,
    /// The site that writes it; one that the control plane chooses if nothing.
    pub(super) site: Option<(SiteName, Place)>,
    pub(super) overwrite: bool,
    pub(super) place: Place,
}

/// How many outputs say that they are published.
pub(super) fn count_published(node: Option<&Node>) -> usize {
    let entries = match node.map(|node| &node.kind) {
        Some(Kind::Mapping(entries)) => entries.as_slice(),
        Some(Kind::Scalar { .. } | Kind::Sequence(_)) | None => &[],
    };
    entries.iter().filter(|entry| says_where(&entry.value)).count()
}

pub(super) fn read_outputs(
    report: &mut Report,
    reader: &mut Reader<'_>,
    node: &Node,
) -> (IndexMap<String, Expression>, Vec<Published>) {
    let mut outputs = IndexMap::new();
    let mut published = Vec::new();
    for entry in report.entries(node, "`outputs`") {
        report.name(&entry.key, entry.key_place, "an output", true);
        if !says_where(&entry.value) {
            outputs.insert(entry.key.clone(), reader.expression(&entry.value));
            continue;
        }
        let fields = report.fields(&entry.value, "an output that is published", &["value", "publish"]);
        let Some(value) = fields.get("value") else {
            let help = Some(format!("write `{}: {{ value: ${{{{ … }}}}, publish: … }}`", entry.key));
            report.error(fields.place, "an output that is published needs its `value`", help);
            continue;
        };
        let value = reader.expression(value);
        outputs.insert(entry.key.clone(), value.clone());
        let at = fields.get("publish").and_then(|node| read_published_at(report, node));
        let fits = fits(report, &entry.key, &value);
        if let Some(at) = at.filter(|at| fits && leaves_a_name(report, at, &value.r#type)) {
            published.push(Published { output: entry.key.clone(), value, at, place: entry.key_place });
        }
    }
    (outputs, published)
}

/// What else is written as a mapping is an object that the run yields.
fn says_where(node: &Node) -> bool {
    matches!(&node.kind, Kind::Mapping(entries) if entries.iter().any(|entry| entry.key == "publish"))
}

/// Whether the value can be published: one of any type shows what it is when the run has it.
fn fits(report: &mut Report, output: &str, value: &Expression) -> bool {
    if matches!(value.r#type, Type::File | Type::Directory | Type::Any) {
        return true;
    }
    let gathers = matches!(&value.r#type, Type::List(Some(of)) if matches!(**of, Type::File | Type::Directory));
    let help = gathers.then(|| "gather them in a directory, in a step".to_owned());
    let message = format!("`{output}` is {}; only a file or a directory is published", value.r#type);
    report.error(value.place, message, help);
    false
}

/// A file becomes what the path or the key names; what ends with `/` names a directory.
fn leaves_a_name(report: &mut Report, at: &PublishedAt, r#type: &Type) -> bool {
    let named = match &at.target {
        Outside::Path(path) => !path.ends_with('/'),
        Outside::Url(url) => url.in_bucket().is_some_and(|(_, key)| !key.is_empty() && !key.ends_with('/')),
    };
    if named || *r#type != Type::File {
        return true;
    }
    report.error(at.place, format!("{} does not say what the file is to be called", at.target), None);
    false
}

/// `{ site: hpc, path: /data/map.tif }`, or `{ url: s3://survey/map.tif }` with or without a site.
fn read_published_at(report: &mut Report, node: &Node) -> Option<PublishedAt> {
    let fields = report.fields(node, "where an output is published", &["site", "path", "url", "overwrite"]);
    let site = fields.get("site").map(|node| (report.parsed(node, "a site"), node.place));
    let overwrite = fields.get("overwrite").and_then(|node| report.boolean(node, "`overwrite`"));
    let target = read_target(report, &fields)?;
    if let (Outside::Path(_), None) = (&target, &site) {
        report.error(node.place, "it needs the `site` whose path it is", None);
        return None;
    }
    let site = match site {
        Some((named, place)) => Some((named?, place)),
        None => None,
    };
    Some(PublishedAt { target, site, overwrite: overwrite.unwrap_or(false), place: node.place })
}

fn read_target(report: &mut Report, fields: &Fields<'_>) -> Option<Outside> {
    match (fields.get("path"), fields.get("url")) {
        (Some(node), None) => report.parsed_with(node, "a path", plain_path).map(Outside::Path),
        (None, Some(node)) => report.parsed_with(node, "a URL", bucket_url).map(Outside::Url),
        (Some(_), Some(node)) => {
            report.error(node.place, "it has a `path` already: it is published at one place", None);
            None
        }
        (None, None) => {
            let help = "write `publish: { site: hpc, path: /data/map.tif }` or `publish: { url: s3://bucket/map.tif }`";
            report.error(fields.place, "it needs a `path` or a `url`", Some(help.to_owned()));
            None
        }
    }
}

/// What is written in a roundabout way might lead elsewhere than it seems to.
fn plain_path(text: &str) -> Result<String, String> {
    without_expressions(text)?;
    let names = text.strip_prefix('/').ok_or("it begins with `/`")?;
    let names = names.strip_suffix('/').unwrap_or(names);
    if names.split('/').any(|name| matches!(name, "" | "." | "..")) || text.contains('\0') {
        return Err("its parts are names: none is empty, `.` or `..`".to_owned());
    }
    Ok(text.to_owned())
}

fn bucket_url(text: &str) -> Result<OutsideUrl, String> {
    without_expressions(text)?;
    let url: OutsideUrl = text.parse().map_err(|error: OutsideUrlError| error.to_string())?;
    let Some((_, key)) = url.in_bucket() else {
        return Err("only a bucket is published to: s3://BUCKET/KEY, gs://BUCKET/KEY or az://CONTAINER/KEY".to_owned());
    };
    let names = key.strip_suffix('/').unwrap_or(key);
    if !url.is_plain() || (!names.is_empty() && names.split('/').any(str::is_empty)) {
        return Err("its parts are names: none is empty, `.` or `..`".to_owned());
    }
    Ok(url)
}

fn without_expressions(text: &str) -> Result<(), String> {
    let plain = !text.contains("${{");
    plain.then_some(()).ok_or_else(|| "no expression stands in it: it is known before the run".to_owned())
}
