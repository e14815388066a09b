//! The log on its device: when it is read, and what of it is written before a write begins.

use std::ops::Range;

use super::Mirror;
use super::log::{Image, Record};
use crate::map::Leg;
use crate::targets::{Cx, LONGEST, Refused};
use crate::worker::ops::Action;

impl Mirror {
    /// Makes the log durable up to a mark.
    pub(super) async fn store(&self, cx: &Cx, mark: u64) -> Result<(), i32> {
        if self.regions().is_durable(mark) {
            return Ok(());
        }
        let _held = self.state.log.lock().await;
        if self.regions().is_durable(mark) {
            return Ok(());
        }
        self.store_held(cx).await
    }

    /// Writes what has changed in the log; durably, if it says more regions dirty.
    pub(super) async fn store_held(&self, cx: &Cx) -> Result<(), i32> {
        let Some(leg) = &self.log else { return Ok(()) };
        let (mark, is_durable) = {
            let regions = self.regions();
            (regions.mark(), regions.is_durable(regions.mark()))
        };
        while let Some(bytes) = self.touched() {
            let ended = self.store_part(cx, leg, &bytes).await;
            if let Err(errno) = ended {
                if let Some(image) = &mut self.regions().image {
                    image.touch(bytes);
                }
                return Err(self.state.log_failed('D', errno));
            }
        }
        if !is_durable {
            if let Err(errno) = cx.io(leg, Action::Flush, 0, 0, Vec::new()).await {
                self.regions().rewrite();
                return Err(self.state.log_failed('F', errno));
            }
            self.regions().made_durable(mark);
        }
        Ok(())
    }

    fn touched(&self) -> Option<Range<usize>> {
        self.regions().image.as_mut()?.take_touched(LONGEST)
    }

    async fn store_part(&self, cx: &Cx, leg: &Leg, bytes: &Range<usize>) -> Result<(), i32> {
        let lease = cx.buffer(bytes.len()).await?;
        let slice = lease.slice().part(0, bytes.len());
        if let Some(image) = &self.regions().image {
            slice.write(image.bytes(bytes.start));
        }
        let (at, len) = sectors(bytes);
        cx.io(leg, Action::Write { durable: false }, at, len, vec![slice]).await
    }

    /// Reads the log's device.
    pub(super) async fn load(&self, cx: &Cx, block: u32, most: usize) -> Result<Image, Refused> {
        let mut image = Image::new(self.state.setup.geometry.count(), block);
        let (Some(leg), end) = (&self.log, image.len().min(most)) else { return Ok(image) };
        let failed = |errno: i32| {
            let error = std::io::Error::from_raw_os_error(errno);
            format!("mirror: Failed to read header on dirty region log device: {error}")
        };
        let mut at = 0;
        while at < end {
            let bytes = at..(at + LONGEST).min(end);
            let lease = cx.buffer(bytes.len()).await.map_err(failed)?;
            let slice = lease.slice().part(0, bytes.len());
            let (sector, len) = sectors(&bytes);
            cx.io(leg, Action::Read, sector, len, vec![slice]).await.map_err(failed)?;
            image.fill(at, |place| {
                let n = place.len().min(bytes.len());
                slice.read(&mut place[..n]);
            });
            at = bytes.end;
        }
        Ok(image)
    }

    /// The leg that the log takes for the source.
    pub(super) fn source(&self, record: Option<Record>) -> Result<usize, Refused> {
        let Some(record) = record else { return Ok(0) };
        if self.state.record(record.source.into()) == Some(record) && usize::from(record.source) < self.legs.len() {
            return Ok(record.source.into());
        }
        Err(format!(
            "mirror: the log says that leg {} of the {} it was used with last has the newest data, and those were others, or \
             in another order; give the table they had, or one with that leg first and `sync`, which copies it to the others",
            record.source + 1,
            record.legs
        ))
    }
}

fn sectors(bytes: &Range<usize>) -> (u64, u64) {
    (bytes.start as u64 / dm_table::SECTOR_SIZE, bytes.len() as u64 / dm_table::SECTOR_SIZE)
}
