//! How what is forwarded of a chunk is put together: a slice where that can be, a copy where something was cut.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use crate::relay::sse::{Event, Piece, Place};

/// How much room for changed bytes is taken at once. Several chunks share it.
const ROOM_BYTES: usize = 2048;

/// Puts together what is forwarded of a chunk: a slice of it as long as that can be, a copy if not.
pub(super) struct Outlet<'a> {
    chunk: &'a Bytes,
    /// The part of the chunk that is to be forwarded next, not yet copied.
    run: Range<usize>,
    room: &'a mut BytesMut,
}

impl<'a> Outlet<'a> {
    /// Nothing forwarded yet. `room` is empty and is so again when all is done.
    pub(super) fn new(chunk: &'a Bytes, room: &'a mut BytesMut) -> Self {
        Self { chunk, run: 0..0, room }
    }

    /// Forwards a piece as it came.
    pub(super) fn forward(&mut self, place: Place<'_>) {
        match place.chunk_at {
            Some(start) => self.extend(start..place.chunk_end),
            None => self.write(place.bytes),
        }
    }

    /// Forwards an event without some spans of its data.
    pub(super) fn forward_cut(&mut self, piece: &Piece<'_>, cuts: &[Range<usize>]) {
        let Piece::Event { event, place } = piece else { return };
        let Some(data_at) = event.data_at else { return self.write_anew(event, cuts) };
        let mut from = 0;
        for cut in cuts {
            self.forward_part(place, from..data_at + cut.start);
            from = data_at + cut.end;
        }
        self.forward_part(place, from..place.bytes.len());
    }

    fn forward_part(&mut self, place: &Place<'_>, part: Range<usize>) {
        match place.chunk_at {
            Some(start) => self.extend(start + part.start..start + part.end),
            None => self.write(&place.bytes[part]),
        }
    }

    /// An event whose data stands in several lines: written again, for the cuts may run across lines.
    fn write_anew(&mut self, event: &Event<'_>, cuts: &[Range<usize>]) {
        let mut data = event.data.to_vec();
        for cut in cuts.iter().rev() {
            data.drain(cut.clone());
        }
        if let Some(name) = event.name {
            self.write(&[b"event: ", name, b"\n"].concat());
        }
        for line in data.split(|&byte| byte == b'\n') {
            self.write(&[b"data: ", line, b"\n"].concat());
        }
        self.write(b"\n");
    }

    fn extend(&mut self, part: Range<usize>) {
        if part.start == self.run.end {
            self.run.end = part.end;
        } else {
            self.flush();
            self.run = part;
        }
    }

    /// Forwards bytes that are not of the stream.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.flush();
        self.reserve(bytes.len());
        self.room.extend_from_slice(bytes);
    }

    fn flush(&mut self) {
        let run = std::mem::take(&mut self.run);
        if !run.is_empty() {
            self.reserve(self.chunk.len());
            self.room.extend_from_slice(&self.chunk[run]);
        }
    }

    fn reserve(&mut self, bytes: usize) {
        if self.room.capacity() - self.room.len() < bytes {
            self.room.reserve(bytes.max(ROOM_BYTES));
        }
    }

    /// What is forwarded in all.
    pub(super) fn finish(mut self) -> Bytes {
        if self.room.is_empty() {
            return self.chunk.slice(self.run);
        }
        self.flush();
        self.room.split().freeze()
    }
}
