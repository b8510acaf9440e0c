//! Counting text where no count is reported: by threads of their own, off the reactor.
//!
//! 1. The queue has a bound. When it is full the job comes back, and the caller estimates.
//! 2. Text is dropped as soon as it is counted, and before anybody is told.
//! 3. The token table (some megabytes) is loaded once, by the first worker, when it starts.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use super::text::Text;

/// How text becomes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// OpenAI's of GPT-4o and later.
    O200k,
    /// OpenAI's of GPT-4, GPT-3.5 and the text embeddings.
    Cl100k,
    /// The chat service's own rule: a quarter of the characters of request and answer together, rounded up.
    Chars4,
}

impl Encoding {
    /// The encoding of that model; `o200k` for what is not known to have another.
    ///
    /// Source: the table of prefixes in OpenAI's tiktoken (`tiktoken/model.py`).
    pub fn for_model(model: Option<&str>) -> Self {
        let model = model.unwrap_or_default();
        let name = model.rsplit('/').next().unwrap_or_default();
        let name = name.strip_prefix("ft:").unwrap_or(name);
        let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
        if starts(&["gpt-4o", "gpt-4.1", "gpt-4.5"]) {
            Encoding::O200k
        } else if starts(&["gpt-4", "gpt-3.5", "gpt-35", "text-embedding"]) {
            Encoding::Cl100k
        } else {
            Encoding::O200k
        }
    }
}

/// How a format's text is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Counting {
    /// As the model does it: see [`Encoding::for_model`].
    #[default]
    Model,
    /// Always with `o200k`.
    O200k,
    /// Always with `cl100k`.
    Cl100k,
    /// A quarter of the characters.
    Chars4,
}

impl Counting {
    /// The encoding for an answer by `model`.
    pub fn encoding(self, model: Option<&str>) -> Encoding {
        match self {
            Counting::Model => Encoding::for_model(model),
            Counting::O200k => Encoding::O200k,
            Counting::Cl100k => Encoding::Cl100k,
            Counting::Chars4 => Encoding::Chars4,
        }
    }
}

/// What is to be counted.
#[derive(Debug, PartialEq, Eq)]
pub struct CountJob {
    /// How.
    pub encoding: Encoding,
    /// What was asked.
    pub request: Text,
    /// What was answered.
    pub answer: Text,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Tokens of the request.
    pub input: u64,
    /// Tokens of the answer.
    pub output: u64,
    /// Whether not all text had been kept, and the rest was taken to be like what had.
    pub extrapolated: bool,
}

type Then = Box<dyn FnOnce(Counted) + Send>;

/// The counting threads. Clones share them; the last one to go lets them finish what is queued, and joins them.
#[derive(Clone, Debug)]
pub struct Counter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Option<SyncSender<(CountJob, Then)>>,
    threads: Vec<JoinHandle<()>>,
}

impl Counter {
    /// Starts `threads` threads (at least one) before a queue of `queue` jobs, and returns at once: the token table is
    /// loaded by the first of them.
    ///
    /// # Panics
    /// Never. Threads that the system refuses to start are missing; when all are, every job comes back.
    pub fn start(threads: usize, queue: usize) -> Self {
        let (sender, receiver) = sync_channel(queue.max(1));
        let receiver = Arc::new(Mutex::new(receiver));
        let threads: Vec<_> = (0..threads.max(1))
            .map_while(|index| {
                let receiver = receiver.clone();
                let work = move || work(&receiver);
                std::thread::Builder::new().name(format!("count-{index}")).spawn(work).ok()
            })
            .collect();
        let queue = (!threads.is_empty()).then_some(sender);
        Self { shared: Arc::new(Shared { queue, threads }) }
    }

    /// Queues a job. The receiver yields its count; it fails only if the counter is gone.
    ///
    /// # Errors
    /// The queue is full: the job, back again.
    pub fn submit(&self, job: CountJob) -> Result<oneshot::Receiver<Counted>, CountJob> {
        let (sender, receiver) = oneshot::channel();
        // Whoever asked may have stopped waiting.
        let then = move |counted| {
            let _ = sender.send(counted);
        };
        match self.submit_then(job, then) {
            Ok(()) => Ok(receiver),
            Err(job) => Err(job),
        }
    }

    /// Queues a job and says what to do with its count, on the counting thread: something short.
    ///
    /// # Errors
    /// The queue is full: the job, back again; `then` is dropped.
    pub fn submit_then(
        &self,
        job: CountJob,
        then: impl FnOnce(Counted) + Send + 'static,
    ) -> Result<(), CountJob> {
        let Some(queue) = &self.shared.queue else { return Err(job) };
        queue.try_send((job, Box::new(then) as Then)).map_err(|error| match error {
            TrySendError::Full((job, _)) | TrySendError::Disconnected((job, _)) => job,
        })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.queue = None;
        let own = std::thread::current().id();
        for thread in self.threads.drain(..).filter(|thread| thread.thread().id() != own) {
            drop(thread.join());
        }
    }
}

fn work(queue: &Mutex<Receiver<(CountJob, Then)>>) {
    // Warm before the first job, which somebody waits for.
    bpe_openai::o200k_base().count("warm");
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((job, then)) = next else { return };
        // A job that makes the tokenizer panic costs its count, not the thread.
        let counted = catch_unwind(AssertUnwindSafe(|| count(&job))).unwrap_or_else(|_| Counted {
            input: estimate(&job.request),
            output: estimate(&job.answer),
            extrapolated: true,
        });
        drop(job);
        drop(catch_unwind(AssertUnwindSafe(|| then(counted))));
    }
}

/// Counts here and now: about 30 ns for each byte. For threads that may take that long.
pub fn count(job: &CountJob) -> Counted {
    let (request, answer) = (&job.request, &job.answer);
    let extrapolated = [request, answer].iter().any(|text| text.seen_bytes > text.kept.len() as u64);
    let tokens = |tokenizer: &bpe_openai::Tokenizer| {
        let of = |text: &Text| scaled(tokenizer.count(text.kept.as_str()) as u64, text);
        (of(request), of(answer))
    };
    let (input, output) = match job.encoding {
        Encoding::O200k => tokens(bpe_openai::o200k_base()),
        Encoding::Cl100k => tokens(bpe_openai::cl100k_base()),
        Encoding::Chars4 => {
            let chars = |text: &Text| scaled(text.kept.chars().count() as u64, text);
            let (asked, said) = (chars(request), chars(answer));
            let total = asked.saturating_add(said).div_ceil(4);
            let input = asked.div_ceil(4);
            (input, total - input)
        }
    };
    Counted { input, output, extrapolated }
}

/// What was counted in the kept part, for the whole.
fn scaled(count: u64, text: &Text) -> u64 {
    let kept = text.kept.len() as u64;
    if text.seen_bytes <= kept {
        count
    } else if kept == 0 {
        text.seen_bytes.div_ceil(4)
    } else {
        let whole = u128::from(count) * u128::from(text.seen_bytes);
        u64::try_from(whole.div_ceil(u128::from(kept))).unwrap_or(u64::MAX)
    }
}

/// A guess in constant time, for when there is no time to count: four bytes of ASCII a token, and a token for each
/// other character, judged by the first few thousand bytes.
pub fn estimate(text: &Text) -> u64 {
    estimate_bytes(text.kept.as_bytes(), text.seen_bytes)
}

/// The same of text whose beginning is `kept` and which has `seen_bytes` in all.
pub(super) fn estimate_bytes(kept: &[u8], seen_bytes: u64) -> u64 {
    const SAMPLE: usize = 4096;
    let sample = &kept[..kept.len().min(SAMPLE)];
    if sample.is_empty() {
        return seen_bytes.div_ceil(4);
    }
    let ascii = sample.iter().filter(|byte| byte.is_ascii()).count() as u64;
    let others = sample.iter().filter(|byte| **byte >= 0xc0).count() as u64;
    let quarters = u128::from(ascii + 4 * others) * u128::from(seen_bytes);
    u64::try_from(quarters.div_ceil(4 * sample.len() as u128)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(encoding: Encoding, request: &str, answer: &str) -> CountJob {
        CountJob { encoding, request: Text::whole(request), answer: Text::whole(answer) }
    }

    #[test]
    fn the_reference_tokenizers_counts_are_ours() {
        let cases = include_str!("../../tests/cases/counts.json");
        let cases: Vec<serde_json::Value> = serde_json::from_str(cases).unwrap();
        for case in &cases {
            let text = case["text"].as_str().unwrap();
            for (encoding, name) in [(Encoding::O200k, "o200k"), (Encoding::Cl100k, "cl100k")] {
                let counted = count(&job(encoding, "", text));
                assert_eq!(counted.output, case[name].as_u64().unwrap(), "{name}: {text}");
            }
        }
    }

    #[test]
    fn the_model_chooses_the_encoding() {
        for model in [
            "gpt-4",
            "gpt-4-turbo-2024-04-09",
            "openai/gpt-3.5-turbo",
            "gpt-35-turbo",
            "text-embedding-3-small",
        ] {
            assert_eq!(Encoding::for_model(Some(model)), Encoding::Cl100k, "{model}");
        }
        for model in
            ["gpt-4o-mini", "gpt-4.1", "gpt-4.5-preview", "o3", "claude-sonnet-4", "ft:gpt-4o:acme", ""]
        {
            assert_eq!(Encoding::for_model(Some(model)), Encoding::O200k, "{model}");
        }
        assert_eq!(Encoding::for_model(None), Encoding::O200k);
    }

    #[test]
    fn the_services_own_rule_rounds_the_sum_once() {
        let counted = count(&job(Encoding::Chars4, "grüße", "ab"));
        assert_eq!(counted.input + counted.output, 7u64.div_ceil(4));
    }

    #[test]
    fn text_that_was_not_kept_is_taken_to_be_like_what_was() {
        let kept = "The quick brown fox. ".repeat(100);
        let whole = count(&job(Encoding::O200k, "", &kept)).output;
        let answer = Text { seen_bytes: 10 * kept.len() as u64, kept };
        let counted = count(&CountJob { encoding: Encoding::O200k, request: Text::default(), answer });
        assert_eq!(counted, Counted { input: 0, output: 10 * whole, extrapolated: true });
    }

    #[test]
    fn an_estimate_is_not_far_off() {
        for text in [
            "The quick brown fox jumps over the lazy dog. ".repeat(20),
            "你好，世界。今天天气很好。".repeat(20),
        ] {
            let counted = count(&job(Encoding::O200k, "", &text)).output;
            let estimate = estimate(&Text::whole(text));
            assert!((counted / 2..=counted * 2).contains(&estimate), "{counted} {estimate}");
        }
        assert_eq!(estimate(&Text::default()), 0);
    }

    #[test]
    fn a_job_is_counted_by_a_thread() {
        let counter = Counter::start(2, 8);
        let receiver = counter.submit(job(Encoding::O200k, "hello world", "hello")).unwrap();
        assert_eq!(receiver.blocking_recv().unwrap(), Counted { input: 2, output: 1, extrapolated: false });
    }

    #[test]
    fn a_full_queue_gives_the_job_back() {
        let counter = Counter::start(1, 1);
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let (started, start) = std::sync::mpsc::channel();
        let wait = move |_| {
            started.send(()).unwrap();
            held.recv().ok();
        };
        counter.submit_then(job(Encoding::Chars4, "", ""), wait).unwrap();
        start.recv().unwrap();
        let queued = counter.submit(job(Encoding::Chars4, "1234", "")).unwrap();
        let refused = counter.submit(job(Encoding::Chars4, "5678", "")).unwrap_err();
        assert_eq!(refused.request.kept, "5678");
        drop(hold);
        assert_eq!(queued.blocking_recv().unwrap().input, 1);
    }

    #[test]
    fn what_is_queued_is_counted_before_the_counter_goes() {
        let counter = Counter::start(1, 64);
        let receivers: Vec<_> =
            (0..50).map(|_| counter.submit(job(Encoding::O200k, "hello", "world")).unwrap()).collect();
        drop(counter);
        assert!(receivers.into_iter().all(|receiver| receiver.blocking_recv().is_ok()));
    }
}
