//! Where two processes meet: a socket in a folder that is the user's alone.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Where a process can be found by who is to succeed it.
#[derive(Debug, Clone)]
pub(in crate::proxy) struct Place {
    folder: PathBuf,
    socket: PathBuf,
}

impl Place {
    /// Of the process with that configuration: in the service manager's `$RUNTIME_DIRECTORY`, or beside the spool.
    pub(in crate::proxy) fn of(config: &Path, spool: &Path) -> Self {
        let runtime = std::env::var("RUNTIME_DIRECTORY").ok().filter(|folders| !folders.is_empty());
        let folder = match runtime.as_deref().and_then(|folders| folders.split(':').next()) {
            Some(folder) => Path::new(folder).join("upgrade"),
            None => {
                let mut name = spool.as_os_str().to_owned();
                name.push(".upgrade");
                name.into()
            }
        };
        Self::inside(folder, config)
    }

    fn inside(folder: PathBuf, config: &Path) -> Self {
        // However it is written, it is the same file.
        let config = fs::canonicalize(config).unwrap_or_else(|_| config.to_owned());
        let name = crc32fast::hash(config.as_os_str().as_encoded_bytes());
        let socket = folder.join(format!("{name:08x}.sock"));
        Self { folder, socket }
    }

    /// Reaches who is there.
    ///
    /// # Errors
    /// Nobody is, or the folder is not the user's alone.
    pub(super) fn reach(&self) -> io::Result<UnixStream> {
        self.check()?;
        UnixStream::connect(&self.socket)
    }

    /// Takes the place, in turn of who has it.
    ///
    /// # Errors
    /// The folder cannot be made, or is not the user's alone, or the path is longer than a socket's may be.
    pub(super) fn take(&self) -> io::Result<UnixListener> {
        if let Some(parent) = self.folder.parent() {
            fs::create_dir_all(parent)?;
        }
        match DirBuilder::new().mode(0o700).create(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => self.check()?,
        }
        // It is there or it is not, and never one that nobody listens on.
        let new = self.socket.with_extension(std::process::id().to_string());
        let _ = fs::remove_file(&new);
        let listener = UnixListener::bind(&new)?;
        fs::rename(&new, &self.socket)?;
        Ok(listener)
    }

    /// Gives it up, where no other process has taken it.
    pub(super) fn leave(&self, listener_inode: Option<u64>) {
        let found = fs::symlink_metadata(&self.socket).ok().map(|socket| socket.ino());
        if found.is_some() && found == listener_inode {
            let _ = fs::remove_file(&self.socket);
        }
    }

    /// What the place's socket is known by.
    pub(super) fn inode(&self) -> Option<u64> {
        fs::symlink_metadata(&self.socket).ok().map(|socket| socket.ino())
    }

    fn check(&self) -> io::Result<()> {
        let folder = fs::symlink_metadata(&self.folder)?;
        let is_ours = folder.uid() == rustix::process::geteuid().as_raw();
        if folder.is_dir() && is_ours && folder.mode() & 0o077 == 0 {
            return Ok(());
        }
        let told = format!("{} is not a folder of this user alone; it is to have mode 0700", self.folder.display());
        Err(io::Error::new(io::ErrorKind::PermissionDenied, told))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn place(folder: &Path) -> Place {
        Place::inside(folder.join("upgrade"), Path::new("/etc/tollgate/tollgate.toml"))
    }

    #[test]
    fn the_folder_is_the_users_alone_or_it_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(folder.path());
        let _listener = place.take().unwrap();
        assert_eq!(fs::metadata(&place.folder).unwrap().mode() & 0o777, 0o700);
        assert!(place.reach().is_ok());
        fs::set_permissions(&place.folder, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(place.reach().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(place.take().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn who_was_succeeded_leaves_the_place_to_its_successor() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(folder.path());
        assert!(place.reach().is_err(), "nobody is there");
        let _old = place.take().unwrap();
        let old = place.inode();
        let _new = place.take().unwrap();
        place.leave(old);
        assert!(place.reach().is_ok());
        place.leave(place.inode());
        assert!(place.reach().is_err());
    }
}
