//! A processor's next job: another CPU gives it, and the processor takes it.
//!
//! Invariant: from when it is given to when it is done a job is seen by who asks ([`JobSlot::is_busy`]), and what it did is
//! seen by who hears that there is none.

use arch::sync::{AtomicBool, Ordering};

/// A lock on a `T`.
pub trait Lock<T> {
    /// Does `work` with the lock held.
    fn locked<R>(&self, work: impl FnOnce(&mut T) -> R) -> R;
}

/// The next job, behind the lock `L`, and whether one is done now.
#[derive(Debug)]
pub struct JobSlot<L> {
    next: L,
    /// Set with the lock held, so that no job is seen nowhere.
    works: AtomicBool,
}

impl<L> JobSlot<L> {
    /// No job, behind this lock.
    pub fn new(next: L) -> Self {
        Self { next, works: AtomicBool::new(false) }
    }

    /// Gives the processor a job. One that it has not begun is dropped.
    pub fn give<J>(&self, job: J)
    where
        L: Lock<Option<J>>,
    {
        drop(self.next.locked(|next| next.replace(job)));
    }

    /// Takes back a job that the processor has not begun.
    pub fn withdraw<J>(&self)
    where
        L: Lock<Option<J>>,
    {
        drop(self.next.locked(Option::take));
    }

    /// The processor has done its last job, and takes the next.
    pub fn take<J>(&self) -> Option<J>
    where
        L: Lock<Option<J>>,
    {
        self.next.locked(|next| {
            self.works.store(next.is_some(), Ordering::Release);
            next.take()
        })
    }

    /// Whether the processor has a job.
    pub fn is_busy<J>(&self) -> bool
    where
        L: Lock<Option<J>>,
    {
        self.next.locked(|next| next.is_some()) || self.works.load(Ordering::Acquire)
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    #[allow(clippy::unwrap_used)] // a helper of tests: a panic is the failure
    impl<T> Lock<T> for Mutex<T> {
        fn locked<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
            work(&mut self.lock().unwrap())
        }
    }

    #[test]
    fn model_a_job_is_seen_until_it_is_done_and_then_what_it_did() {
        loom::model(|| {
            let slot = Arc::new(JobSlot::new(Mutex::new(None::<u32>)));
            let done = Arc::new(AtomicBool::new(false));
            slot.give(7);
            let processor = {
                let (slot, done) = (slot.clone(), done.clone());
                thread::spawn(move || {
                    assert_eq!(slot.take(), Some(7));
                    done.store(true, Ordering::Relaxed);
                    assert_eq!(slot.take(), None);
                })
            };
            if !slot.is_busy() {
                assert!(done.load(Ordering::Relaxed));
            }
            processor.join().unwrap();
            assert!(!slot.is_busy());
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[allow(clippy::unwrap_used)] // a helper of tests: a panic is the failure
    impl<T> Lock<T> for Mutex<T> {
        fn locked<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
            work(&mut self.lock().unwrap())
        }
    }

    #[test]
    fn a_processor_is_busy_from_when_it_is_given_a_job_to_when_it_takes_no_other() {
        let slot = JobSlot::new(Mutex::new(None));
        assert!(!slot.is_busy() && slot.take().is_none());
        slot.give(1);
        slot.give(2);
        assert!(slot.is_busy());
        assert_eq!(slot.take(), Some(2), "the last that it was given");
        assert!(slot.is_busy(), "it works");
        slot.give(3);
        slot.withdraw();
        assert!(slot.is_busy());
        assert!(slot.take().is_none() && !slot.is_busy());
    }
}
