//! Objects written member by member.

/// An object that is being written.
pub(super) struct ObjectWriter<'a> {
    out: &'a mut Vec<u8>,
    begun: bool,
}

impl<'a> ObjectWriter<'a> {
    /// Opens an object.
    pub(super) fn open(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, begun: false }
    }

    /// Goes on with an object that has members already.
    pub(super) fn resume(out: &'a mut Vec<u8>) -> Self {
        Self { out, begun: true }
    }

    /// Writes a key, and gives what its value is to be written to.
    pub(super) fn key(&mut self, key: &[u8]) -> &mut Vec<u8> {
        if self.begun {
            self.out.push(b',');
        }
        self.begun = true;
        self.out.push(b'"');
        self.out.extend_from_slice(key);
        self.out.extend_from_slice(b"\":");
        self.out
    }

    /// Writes a member whose value is JSON as it stands.
    pub(super) fn raw(&mut self, key: &[u8], value: &[u8]) {
        self.key(key).extend_from_slice(value);
    }

    /// Writes a member that is a string, given as its inside with its escapes.
    pub(super) fn string(&mut self, key: &[u8], inside: &[u8]) {
        let out = self.key(key);
        out.push(b'"');
        out.extend_from_slice(inside);
        out.push(b'"');
    }

    /// Writes a member that is a number.
    pub(super) fn number(&mut self, key: &[u8], number: u64) {
        let mut digits = [0; 20];
        let mut at = digits.len();
        let mut rest = number;
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.raw(key, &digits[at..]);
    }

    /// Writes members as they stand: keys with their escapes, and values.
    pub(super) fn others(&mut self, others: &[(&[u8], &[u8])]) {
        others.iter().for_each(|(key, value)| self.raw(key, value));
    }

    /// Writes members that were written before, each with a comma before it.
    pub(super) fn written(&mut self, members: &[u8]) {
        self.out.extend_from_slice(members);
    }

    /// Whether nothing has been written.
    pub(super) fn is_empty(&self) -> bool {
        !self.begun
    }

    /// Closes it.
    pub(super) fn close(self) {
        self.out.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_stand_between_commas() {
        let mut out = Vec::new();
        let mut object = ObjectWriter::open(&mut out);
        assert!(object.is_empty());
        object.number(b"a", 0);
        object.number(b"b", u64::MAX);
        object.string(b"c", br"\n");
        object.others(&[(b"d", b"[1]")]);
        object.close();
        assert_eq!(out, br#"{"a":0,"b":18446744073709551615,"c":"\n","d":[1]}"#);
    }
}
