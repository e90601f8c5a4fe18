//! Validates the names of repositories, revisions and files.

use crate::HubError;

/// Checks that the names of a repository and a revision are safe to use in paths and URLs.
///
/// # Errors
/// [`HubError::InvalidId`] if one of the names is not safe.
pub(crate) fn check_id(repo: &str, revision: &str) -> Result<(), HubError> {
    let parts: Vec<&str> = repo.split('/').collect();
    let repo_is_valid = parts.len() == 2 && parts.iter().all(|part| is_plain_name(part) && !part.contains(".."));
    // The revision is used as a path below `refs`.
    let revision_is_valid = revision.len() <= 255
        && revision
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', ':', '\0', '\n', '\r']));
    if repo_is_valid && revision_is_valid {
        return Ok(());
    }
    Err(HubError::InvalidId { id: format!("{repo}@{revision}").chars().take(200).collect() })
}

/// Returns whether the name matches `[A-Za-z0-9._-]{1,255}` and does not start with a dot.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=255).contains(&name.len()) && name.bytes().all(is_plain) && !name.starts_with('.')
}

pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
