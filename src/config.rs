//! placeholder
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .find(|k| k.len().abs_diff(name.len()) < 2 && k.starts_with(&name[..1]))
}
