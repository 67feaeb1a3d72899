//! Which node a spool is. Whoever is at the spool is that node, and has what it leased: a process that takes over from another, or that
//! settles what a dead one left.
//!
//! The id is in a file beside the spool, `<spool>.node`, which is moved with it. It must not be copied to another machine together with
//! the spool: two nodes would hold the same leases to be their own.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::{SpoolError, tables};

/// The id of the node whose spool that is, made up where there is none yet.
///
/// # Errors
/// The file beside the spool can be neither read nor written.
pub fn node_id(spool: &Path) -> Result<Arc<str>, SpoolError> {
    if let Some(id) = known_node_id(spool)? {
        return Ok(id);
    }
    tables::create(spool)?;
    let path = path_of(spool);
    let failed = |source| SpoolError::Create { path: path.clone(), source };
    let id = format!("node_{}", Uuid::now_v7().simple());
    let draft = path.with_extension(&id);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).map_err(failed)?;
    file.write_all(id.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    if path.exists() && known_node_id(spool)?.is_none() {
        std::fs::remove_file(&path).map_err(failed)?;
    }
    // Of two processes that begin at once one is first, and both are the node that it made.
    match std::fs::hard_link(&draft, &path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    std::fs::remove_file(&draft).map_err(failed)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    known_node_id(spool)?.ok_or_else(|| failed(ErrorKind::NotFound.into()))
}

/// The id of the node whose spool that is; `None` where no node has begun there.
///
/// # Errors
/// The file beside the spool cannot be read.
pub fn known_node_id(spool: &Path) -> Result<Option<Arc<str>>, SpoolError> {
    let path = path_of(spool);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(parse(text.trim())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SpoolError::Create { path, source }),
    }
}

fn path_of(spool: &Path) -> PathBuf {
    let mut name = spool.as_os_str().to_owned();
    name.push(".node");
    name.into()
}

/// `None` where that is not what this program writes.
fn parse(text: &str) -> Option<Arc<str>> {
    let digits = text.strip_prefix("node_")?;
    (digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spool_is_the_same_node_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let spool = folder.path().join("a/spool.db");
        assert_eq!(known_node_id(&spool).unwrap(), None);
        let id = node_id(&spool).unwrap();
        assert_eq!(node_id(&spool).unwrap(), id);
        assert_eq!(known_node_id(&spool).unwrap(), Some(id.clone()));
        assert_ne!(node_id(&folder.path().join("b/spool.db")).unwrap(), id);
        std::fs::write(path_of(&spool), "").unwrap();
        assert_ne!(node_id(&spool).unwrap(), id, "what cannot be read is made anew");
    }
}
