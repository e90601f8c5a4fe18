//! Videos that the programs `ffprobe` and `ffmpeg` decode.
//!
//! Both run with fixed arguments on one local file, in a process group of their own that is killed when time is up, the
//! caller cancels, or reading fails. The demultiplexer is given by name and only the protocol `file` is allowed, so
//! that a file cannot make them open other files or addresses. Frames come through a pipe as PPM pictures (8-bit RGB,
//! no loss), and each is checked against the limits before its pixels are read.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::image::{ReadOptions, RgbImage};
use crate::video::VideoError;
use crate::video::container::Container;

const FFMPEG: &str = "ffmpeg";
const FFPROBE: &str = "ffprobe";

/// Maximum number of frames of a file.
const MAX_FRAMES: usize = 1 << 24;

/// Maximum length of a line that `ffprobe` prints, in bytes.
const MAX_LINE: u64 = 4096;

/// Number of bytes of a program's error message that are kept.
const MAX_MESSAGE: usize = 400;

/// Interval between checks whether a running program was cancelled or took too long.
const PERIOD: Duration = Duration::from_millis(50);

/// A video file that FFmpeg decodes.
#[derive(Debug)]
pub(super) struct Clip<'a> {
    path: PathBuf,
    container: Container,
    read: &'a ReadOptions,
    timeout: Duration,
    /// Number of frames.
    pub(super) n_frames: usize,
    /// Average rate in frames per second, if known.
    pub(super) fps: Option<f64>,
    /// Length in seconds, if known.
    pub(super) duration: Option<f64>,
}

impl<'a> Clip<'a> {
    /// Opens the file at the absolute `path`, and counts the frames of its first video stream without decoding them.
    pub(super) fn open(
        path: PathBuf,
        container: Container,
        read: &'a ReadOptions,
        timeout: Duration,
    ) -> Result<Self, VideoError> {
        let mut clip = Self { path, container, read, timeout, n_frames: 0, fps: None, duration: None };
        let found =
            clip.probe(&[], "packet=pts_time,duration_time,flags:stream=avg_frame_rate,duration:format=duration")?;
        clip.n_frames = found.n_packets;
        let shown = found.end - found.start;
        let duration = if shown > 0.0 && shown.is_finite() { Some(shown) } else { found.duration };
        clip.duration = duration.filter(|seconds| seconds.is_finite() && *seconds > 0.0);
        clip.fps = clip.duration.map(|seconds| clip.n_frames as f64 / seconds).or(found.rate);
        Ok(clip)
    }

    /// Counts the frames by decoding them, because some formats have packets without a frame of their own.
    pub(super) fn count_frames(&mut self) -> Result<(), VideoError> {
        let found = self.probe(&["-count_frames"], "stream=nb_read_frames")?;
        self.n_frames = found.n_decoded.unwrap_or(0).min(self.n_frames);
        Ok(())
    }

    /// Runs `ffprobe` on the first video stream that is not a cover picture.
    fn probe(&self, more: &[&str], entries: &str) -> Result<Found, VideoError> {
        let fixed = ["-v", "error", "-protocol_whitelist", "file,pipe", "-select_streams", "V:0", "-of", "compact=p=1"];
        let mut arguments: Vec<OsString> = fixed.iter().chain(more).map(OsString::from).collect();
        arguments.extend(["-show_entries", entries, "-f", self.container.demuxer, "-i"].map(OsString::from));
        arguments.push(self.input());
        let mut found = Found::default();
        self.run(FFPROBE, &arguments, |output| {
            let mut line = Vec::new();
            loop {
                line.clear();
                if output.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(Trouble::Read)? == 0 {
                    return Ok(());
                }
                found.take(&String::from_utf8_lossy(&line));
                if found.n_packets > MAX_FRAMES {
                    return Err(Trouble::Output(format!("the file has more than {MAX_FRAMES} frames")));
                }
            }
        })?;
        Ok(found)
    }

    /// Decodes the frames at the ascending `indices`, and calls `take` with each frame. Returns the number of decoded
    /// frames. It is smaller than the number of indices if the file has fewer frames than packets.
    pub(super) fn decode(&self, indices: &[usize], mut take: impl FnMut(RgbImage)) -> Result<usize, VideoError> {
        // With these flags, the conversion to RGB is the same on every processor.
        let scale = "scale=flags=bicubic+accurate_rnd+full_chroma_int+bitexact,format=rgb24";
        let filter = format!("select={},{scale}", chosen(indices));
        let mut arguments: Vec<OsString> =
            ["-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe", "-f", self.container.demuxer, "-i"]
                .map(OsString::from)
                .to_vec();
        arguments.push(self.input());
        arguments.extend(["-map", "0:V:0", "-vf", &filter, "-fps_mode", "passthrough"].map(OsString::from));
        arguments.extend(["-frames:v", &indices.len().to_string()].map(OsString::from));
        arguments.extend(["-c:v", "ppm", "-f", "image2pipe", "pipe:1"].map(OsString::from));
        let mut n_frames = 0;
        self.run(FFMPEG, &arguments, |output| {
            while let Some(frame) = self.read_frame(output)? {
                if n_frames == indices.len() {
                    return Err(Trouble::Output("the program printed more frames than requested".to_owned()));
                }
                n_frames += 1;
                take(frame);
            }
            Ok(())
        })?;
        Ok(n_frames)
    }

    /// Returns the file as an argument, in a form that FFmpeg cannot read as an option or as another protocol.
    fn input(&self) -> OsString {
        let mut input = OsString::from("file:");
        input.push(&self.path);
        input
    }

    /// Reads one PPM picture from FFmpeg's output: a line `P6`, a line with width and height, a line `255`, then the
    /// pixels. Returns `None` at the end of the output.
    fn read_frame(&self, output: &mut BufReader<ChildStdout>) -> Result<Option<RgbImage>, Trouble> {
        let malformed = || Trouble::Output("the program's output is not a list of PPM pictures".to_owned());
        let mut head = Vec::new();
        for _ in 0..3 {
            output.by_ref().take(64).read_until(b'\n', &mut head).map_err(Trouble::Read)?;
        }
        if head.is_empty() {
            return Ok(None);
        }
        let head = String::from_utf8(head).map_err(|_| malformed())?;
        let mut words = head.split_ascii_whitespace();
        if words.next() != Some("P6") {
            return Err(malformed());
        }
        let mut side = || words.next().and_then(|word| word.parse::<u32>().ok()).filter(|&side| side > 0);
        let (Some(width), Some(height), Some(255)) = (side(), side(), side()) else { return Err(malformed()) };
        let pixels = u64::from(width) * u64::from(height);
        let limits = &self.read.limits;
        if pixels > limits.max_pixels || pixels.saturating_mul(3) > limits.max_decoded_bytes {
            let limit = limits.max_pixels;
            let remedy = "scale it down or raise the limit (--max-image-pixels N, or none)";
            return Err(Trouble::Limit(format!("a frame has {width}x{height} pixels, more than {limit}; {remedy}")));
        }
        // The buffer grows with the bytes that are read. The size in the header is not trusted for an allocation.
        let mut data = Vec::new();
        output.by_ref().take(3 * pixels).read_to_end(&mut data).map_err(Trouble::Read)?;
        match RgbImage::new(width, height, data) {
            Ok(frame) => Ok(Some(frame)),
            Err(_) => Err(Trouble::Output("the program's output ends within a frame".to_owned())),
        }
    }

    /// Runs a program and passes its output to `read`.
    fn run(
        &self,
        program: &'static str,
        arguments: &[OsString],
        read: impl FnOnce(&mut BufReader<ChildStdout>) -> Result<(), Trouble>,
    ) -> Result<(), VideoError> {
        let video = || self.path.display().to_string();
        let failed = |reason| VideoError::Program { video: video(), program, reason };
        let mut running = match Running::start(program, arguments, self.timeout, self.read) {
            Ok(running) => running,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(VideoError::NoProgram { video: video(), format: self.container.name, program });
            }
            Err(error) => return Err(failed(crate::files::describe_io_error(&error))),
        };
        let result = read(&mut running.output);
        let Ended { is_success, message, why } = running.end(result.is_err());
        match (why, result) {
            (Some(Why::Timeout), _) => Err(VideoError::Timeout { video: video(), program, limit: self.timeout }),
            (Some(Why::Cancelled), _) => Err(crate::image::ImageError::Cancelled { image: video() }.into()),
            (None, Err(Trouble::Output(reason) | Trouble::Limit(reason))) => Err(failed(reason)),
            (None, Err(Trouble::Read(error))) => Err(failed(crate::files::describe_io_error(&error))),
            (None, Ok(())) if !is_success && message.is_empty() => {
                Err(failed("the program failed without a message".to_owned()))
            }
            (None, Ok(())) if !is_success => Err(failed(message)),
            (None, Ok(())) => Ok(()),
        }
    }
}

/// Returns the FFmpeg expression that is true for the frames at `indices`. FFmpeg rejects sums of more than a hundred
/// terms in a row, so the sum is nested: each half is added up separately.
fn chosen(indices: &[usize]) -> String {
    match indices {
        [] => "0".to_owned(),
        [index] => format!("eq(n\\,{index})"),
        _ => {
            let (left, right) = indices.split_at(indices.len() / 2);
            format!("({}+{})", chosen(left), chosen(right))
        }
    }
}

/// What `ffprobe` printed.
#[derive(Debug)]
struct Found {
    n_packets: usize,
    /// Number of frames, if they were decoded.
    n_decoded: Option<usize>,
    /// Earliest start of a packet, in seconds.
    start: f64,
    /// Latest end of a packet, in seconds.
    end: f64,
    /// Length in seconds, according to the headers.
    duration: Option<f64>,
    /// Frames per second, according to the headers.
    rate: Option<f64>,
}

impl Default for Found {
    fn default() -> Self {
        Self { n_packets: 0, n_decoded: None, start: f64::INFINITY, end: f64::NEG_INFINITY, duration: None, rate: None }
    }
}

impl Found {
    /// Parses a line of output: the name of a section, then fields `key=value`, all separated by `|`.
    fn take(&mut self, line: &str) {
        let mut fields = line.trim_end().split('|');
        let section = fields.next().unwrap_or_default();
        let value = |key: &str| {
            let mut values = fields.clone().filter_map(|field| field.split_once('='));
            values.find_map(|(name, value)| (name == key).then_some(value))
        };
        let seconds = |key: &str| value(key).and_then(|text| text.parse::<f64>().ok());
        match section {
            // `D` marks packets whose frames are dropped.
            "packet" if value("flags").is_none_or(|flags| !flags.contains('D')) => {
                self.n_packets += 1;
                if let Some(start) = seconds("pts_time") {
                    self.start = self.start.min(start);
                    self.end = self.end.max(start + seconds("duration_time").unwrap_or(0.0));
                }
            }
            "stream" => {
                self.duration = seconds("duration").or(self.duration);
                self.n_decoded = value("nb_read_frames").and_then(|text| text.parse().ok()).or(self.n_decoded);
                let rate = value("avg_frame_rate").and_then(|rate| rate.split_once('/'));
                let rate = rate.and_then(|(over, under)| Some(over.parse::<f64>().ok()? / under.parse::<f64>().ok()?));
                self.rate = rate.filter(|rate| rate.is_finite() && *rate > 0.0);
            }
            "format" => self.duration = self.duration.or(seconds("duration")),
            _ => {}
        }
    }
}

/// Why reading the output of a program stopped.
#[derive(Debug)]
enum Trouble {
    Read(io::Error),
    Output(String),
    Limit(String),
}

/// Why a program was killed.
#[derive(Debug, Clone, Copy)]
enum Why {
    Timeout,
    Cancelled,
}

/// A running program, in a process group of its own. Dropping this value kills the program.
struct Running {
    output: BufReader<ChildStdout>,
    child: Child,
    /// Sender that is dropped to tell the thread `watch` that the program has ended.
    done: Option<Sender<()>>,
    watch: Option<JoinHandle<()>>,
    message: Option<JoinHandle<String>>,
    why: Arc<Mutex<Option<Why>>>,
}

/// How a program ended.
struct Ended {
    is_success: bool,
    /// What the program printed to standard error, shortened and on one line.
    message: String,
    why: Option<Why>,
}

impl Running {
    fn start(program: &str, arguments: &[OsString], timeout: Duration, read: &ReadOptions) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        let output = child.stdout.take().map(BufReader::new);
        let errors = child.stderr.take();
        let (Some(output), Some(mut errors)) = (output, errors) else {
            return Err(io::Error::other("the program's output cannot be read"));
        };
        let id = child.id();
        let message = thread::spawn(move || {
            let mut message = vec![0; MAX_MESSAGE];
            let (mut kept, mut rest) = (0, [0; 1024]);
            while kept < message.len() {
                match errors.read(&mut message[kept..]) {
                    Ok(0) | Err(_) => break,
                    Ok(n) => kept += n,
                }
            }
            // Reads and drops the rest. Otherwise, the program would wait for a reader.
            while matches!(errors.read(&mut rest), Ok(1..)) {}
            one_line(&String::from_utf8_lossy(&message[..kept]))
        });
        let (done, ended) = channel::<()>();
        let why = Arc::new(Mutex::new(None));
        let (cancel, reason, deadline) = (read.cancel.clone(), why.clone(), Instant::now().checked_add(timeout));
        let watch = thread::spawn(move || {
            loop {
                let is_cancelled =
                    cancel.as_ref().is_some_and(|cancel| cancel.load(std::sync::atomic::Ordering::Relaxed));
                let is_late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
                if is_cancelled || is_late {
                    let found = if is_cancelled { Why::Cancelled } else { Why::Timeout };
                    *reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
                    kill(id);
                    return;
                }
                if ended.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        let (watch, message) = (Some(watch), Some(message));
        Ok(Self { output, child, done: Some(done), watch, message, why })
    }

    /// Waits until the program has ended. If `kill_it` is set, kills the program first.
    fn end(mut self, kill_it: bool) -> Ended {
        let is_success = self.wait(kill_it);
        let message = self.message.take().and_then(|message| message.join().ok()).unwrap_or_default();
        let why = *self.why.lock().unwrap_or_else(PoisonError::into_inner);
        Ended { is_success, message, why }
    }

    /// Waits until the program has ended, and returns whether it succeeded. The thread `watch` runs until then, because
    /// the output may be closed long before the program ends.
    fn wait(&mut self, kill_it: bool) -> bool {
        if kill_it {
            kill(self.child.id());
            let _ = self.child.kill();
        }
        let status = self.child.wait();
        self.done = None;
        if let Some(watch) = self.watch.take() {
            let _ = watch.join();
        }
        status.is_ok_and(|status| status.success())
    }
}

/// Joins the lines of a message, and removes prefixes such as `[mov @ 0x55ae89184e00] `, which name a part of FFmpeg.
fn one_line(message: &str) -> String {
    let without = |line: &str| match line.split_once("] ") {
        Some((part, rest)) if part.starts_with('[') && part.contains(" @ 0x") => rest.trim().to_owned(),
        _ => line.trim().to_owned(),
    };
    let lines: Vec<String> = message.lines().map(without).filter(|line| !line.is_empty()).collect();
    lines.join("; ")
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.watch.is_some() {
            self.wait(true);
        }
    }
}

/// Kills the process group of a child that has not been waited for.
#[cfg(unix)]
fn kill(id: u32) {
    use rustix::process::{Pid, Signal, kill_process_group};
    if let Some(group) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// Does nothing: on other systems, the thread `watch` cannot kill the child. The child ends when its output is closed.
#[cfg(not(unix))]
fn kill(_id: u32) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_one_line_without_addresses() {
        let message = "[mov,mp4 @ 0x55ae89184e00] moov atom not found\n\nfile:/a [1] b.mp4: Invalid data\n";
        assert_eq!(one_line(message), "moov atom not found; file:/a [1] b.mp4: Invalid data");
    }

    #[test]
    fn frames_are_chosen_by_a_balanced_sum() {
        assert_eq!(chosen(&[7]), "eq(n\\,7)");
        assert_eq!(chosen(&[0, 4, 9]), "(eq(n\\,0)+(eq(n\\,4)+eq(n\\,9)))");
    }

    #[test]
    fn packets_give_frame_count_and_duration() {
        let mut found = Found::default();
        for line in [
            "packet|pts_time=0.400000|duration_time=0.100000|flags=__\n",
            "packet|pts_time=0.200000|duration_time=0.100000|flags=K_\n",
            "packet|pts_time=9.000000|duration_time=0.100000|flags=_D\n",
            "packet|pts_time=N/A|duration_time=N/A|flags=__\n",
            "stream|avg_frame_rate=30000/1001|duration=N/A\n",
            "format|duration=0.700000\n",
            "\n",
        ] {
            found.take(line);
        }
        assert_eq!((found.n_packets, found.start, found.end), (3, 0.2, 0.5));
        assert_eq!((found.duration, found.rate), (Some(0.7), Some(30000.0 / 1001.0)));
        found.take("stream|avg_frame_rate=0/0");
        assert_eq!(found.rate, None);
    }
}
