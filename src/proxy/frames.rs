//! What a client sends over HTTP/2, frame by frame: no more of what keeps a server busy than a client with something to ask
//! would send.
//!
//! The `h2` crate bounds what it must remember (streams, resets that it waits for, CONTINUATION frames, tiny DATA frames, resets
//! that it was made to send). It does not bound how often it is made to work: PING, SETTINGS, PRIORITY, RST_STREAM of streams that it
//! had begun, WINDOW_UPDATE. That is counted here, on the bytes as they come, by two allowances that fill up with time.
//!
//! Deliberately absent: what frames mean. Only their heads are read; the codec behind judges the rest.

/// A frame's head: length (3), type, flags, stream (4).
const HEAD_BYTES: usize = 9;
/// What comes before the first frame: `PRI * HTTP/2.0`, `SM` and four line ends.
const PREFACE_BYTES: usize = 24;

/// Frames that ask for work and bring no request, at once and by the second. A client that gives up each of its 128 streams at
/// once, four times over, is still one that is believed.
const COMMANDS_AT_ONCE: u64 = 512;
const COMMANDS_A_SECOND: u64 = 64;
/// Updates of windows, at once and by the second; more come with what the relay has written.
const UPDATES_AT_ONCE: u64 = 4096;
const UPDATES_A_SECOND: u64 = 256;
/// For so many bytes written, one update more: two for the smallest piece of an answer that could come.
const BYTES_AN_UPDATE: u64 = 16;

mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const CONTINUATION: u8 = 9;
}

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// The client has sent more than its allowance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flood;

/// Where a client's frames stand.
#[derive(Debug)]
pub(super) struct Frames {
    preface_left: usize,
    head: [u8; HEAD_BYTES],
    head_read: usize,
    payload_left: usize,
    is_established: bool,
    /// Since when a request's head is coming.
    head_since_us: Option<u64>,
    commands: Allowance,
    updates: Allowance,
}

impl Frames {
    pub(super) fn new(now_us: u64) -> Self {
        Self {
            preface_left: PREFACE_BYTES,
            head: [0; HEAD_BYTES],
            head_read: 0,
            payload_left: 0,
            is_established: false,
            head_since_us: None,
            commands: Allowance::new(COMMANDS_AT_ONCE, COMMANDS_A_SECOND, now_us),
            updates: Allowance::new(UPDATES_AT_ONCE, UPDATES_A_SECOND, now_us),
        }
    }

    /// Takes what the client has sent.
    ///
    /// # Errors
    /// It is more than it may send.
    pub(super) fn read(&mut self, mut bytes: &[u8], now_us: u64) -> Result<(), Flood> {
        let preface = self.preface_left.min(bytes.len());
        self.preface_left -= preface;
        bytes = &bytes[preface..];
        while !bytes.is_empty() {
            if self.head_read < HEAD_BYTES {
                let part = (HEAD_BYTES - self.head_read).min(bytes.len());
                self.head[self.head_read..self.head_read + part].copy_from_slice(&bytes[..part]);
                self.head_read += part;
                bytes = &bytes[part..];
                if self.head_read < HEAD_BYTES {
                    break;
                }
                self.begin_frame(now_us)?;
            }
            let part = self.payload_left.min(bytes.len());
            self.payload_left -= part;
            bytes = &bytes[part..];
            if self.payload_left == 0 {
                self.end_frame();
            }
        }
        Ok(())
    }

    /// Takes note of what was written to the client.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.updates.grant(bytes as u64, BYTES_AN_UPDATE);
    }

    /// Whether the client has said what it is: its preface and its settings have come.
    pub(super) fn is_established(&self) -> bool {
        self.is_established
    }

    /// Since when a request's head is coming, where one is.
    pub(super) fn head_since_us(&self) -> Option<u64> {
        self.head_since_us
    }

    fn begin_frame(&mut self, now_us: u64) -> Result<(), Flood> {
        let [high, middle, low, kind, flags, ..] = self.head;
        self.payload_left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let is_empty = self.payload_left == 0;
        match kind {
            kind::HEADERS => {
                self.head_since_us.get_or_insert(now_us);
                Ok(())
            }
            kind::DATA if !is_empty || flags & END_STREAM != 0 => Ok(()),
            kind::CONTINUATION if !is_empty => Ok(()),
            kind::WINDOW_UPDATE => self.updates.take(now_us),
            _ => self.commands.take(now_us),
        }
    }

    fn end_frame(&mut self) {
        let [_, _, _, kind, flags, ..] = self.head;
        self.head_read = 0;
        match kind {
            kind::SETTINGS => self.is_established = true,
            kind::HEADERS | kind::CONTINUATION if flags & END_HEADERS != 0 => self.head_since_us = None,
            _ => {}
        }
    }
}

/// So many at once, and so many a second after that.
#[derive(Debug)]
struct Allowance {
    most: u64,
    a_second: u64,
    /// In millionths, so that nothing is lost between two looks.
    left_millionths: u64,
    at_us: u64,
}

const MILLION: u64 = 1_000_000;

impl Allowance {
    fn new(most: u64, a_second: u64, now_us: u64) -> Self {
        Self { most, a_second, left_millionths: most * MILLION, at_us: now_us }
    }

    fn take(&mut self, now_us: u64) -> Result<(), Flood> {
        let passed_us = now_us.saturating_sub(self.at_us);
        self.at_us = now_us;
        self.add(passed_us.saturating_mul(self.a_second));
        self.left_millionths = self.left_millionths.checked_sub(MILLION).ok_or(Flood)?;
        Ok(())
    }

    /// Adds one for each `apiece` of `amount`.
    fn grant(&mut self, amount: u64, apiece: u64) {
        self.add(amount.saturating_mul(MILLION) / apiece);
    }

    fn add(&mut self, millionths: u64) {
        self.left_millionths = self.left_millionths.saturating_add(millionths).min(self.most * MILLION);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PING: u8 = 6;
    const RST_STREAM: u8 = 3;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        bytes.extend(payload);
        bytes
    }

    fn begun() -> Frames {
        let mut frames = Frames::new(0);
        frames.read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0).unwrap();
        assert!(!frames.is_established());
        frames.read(&frame(kind::SETTINGS, 0, &[0; 6]), 0).unwrap();
        assert!(frames.is_established());
        frames
    }

    /// How many of a frame are taken at one moment.
    fn taken(frames: &mut Frames, bytes: &[u8], now_us: u64) -> usize {
        (0..100_000).take_while(|_| frames.read(bytes, now_us).is_ok()).count()
    }

    #[test]
    fn frames_that_only_keep_busy_have_an_end() {
        for (what, bytes, most) in [
            ("PING", frame(PING, 0, &[0; 8]), 511),
            ("SETTINGS", frame(kind::SETTINGS, 0, &[]), 511),
            ("RST_STREAM", frame(RST_STREAM, 0, &[0; 4]), 511),
            ("an unknown frame", frame(200, 0, &[0; 4]), 511),
            ("DATA without data", frame(kind::DATA, 0, &[]), 511),
            ("CONTINUATION without anything", frame(kind::CONTINUATION, 0, &[]), 511),
            ("WINDOW_UPDATE", frame(kind::WINDOW_UPDATE, 0, &[0, 0, 0, 1]), 4096),
        ] {
            assert_eq!(taken(&mut begun(), &bytes, 0), most, "{what}");
        }
    }

    #[test]
    fn requests_and_their_bodies_have_none_here() {
        let mut frames = begun();
        for bytes in [frame(kind::HEADERS, END_HEADERS, &[0; 50]), frame(kind::DATA, 0, &[0; 100])] {
            assert_eq!(taken(&mut frames, &bytes, 0), 100_000);
        }
        assert_eq!(taken(&mut frames, &frame(kind::DATA, END_STREAM, &[]), 0), 100_000, "the end of a body");
    }

    #[test]
    fn an_allowance_fills_up_with_time() {
        let mut allowance = Allowance::new(512, 64, 0);
        let mut taken = |at_us| (0..10_000).take_while(|_| allowance.take(at_us).is_ok()).count();
        assert_eq!(taken(0), 512);
        assert_eq!(taken(MILLION), 64);
        assert_eq!(taken(MILLION + MILLION / 64), 1);
        assert_eq!(taken(1_000 * MILLION), 512, "never more than at once");
    }

    #[test]
    fn who_reads_much_may_update_its_windows_often() {
        let (mut frames, update) = (begun(), frame(kind::WINDOW_UPDATE, 0, &[0, 0, 0, 1]));
        let take = |frames: &mut Frames, count: usize| (0..count).all(|_| frames.read(&update, 0).is_ok());
        assert!(take(&mut frames, 4096));
        frames.wrote(32 * 100);
        assert!(frames.read(&frame(PING, 0, &[0; 8]), 0).is_ok(), "the two are counted apart");
        assert!(take(&mut frames, 200));
        assert!(!take(&mut frames, 1));
    }

    #[test]
    fn a_head_is_coming_until_its_last_byte() {
        let mut frames = begun();
        frames.read(&frame(kind::HEADERS, 0, b"abc"), 5).unwrap();
        assert_eq!(frames.head_since_us(), Some(5));
        let last = frame(kind::CONTINUATION, END_HEADERS, b"def");
        frames.read(&last[..last.len() - 1], 7).unwrap();
        assert_eq!(frames.head_since_us(), Some(5));
        frames.read(&last[last.len() - 1..], 9).unwrap();
        assert_eq!(frames.head_since_us(), None);
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_bytes_are_cut(cuts in proptest::collection::vec(1_usize..20, 1..200)) {
            let mut all = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            for size in 0..40 {
                all.extend(frame(kind::HEADERS, END_HEADERS, &vec![0; size]));
                all.extend(frame(PING, 0, &[0; 8]));
            }
            let (mut whole, mut cut) = (Frames::new(0), Frames::new(0));
            whole.read(&all, 0).unwrap();
            let mut rest = &all[..];
            for size in cuts.iter().cycle() {
                let (piece, left) = rest.split_at((*size).min(rest.len()));
                cut.read(piece, 0).unwrap();
                rest = left;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(format!("{whole:?}"), format!("{cut:?}"));
        }
    }
}
