//! What a link does to real sockets, measured.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Result;
use wan_tests::{Link, Network, Shape, Site};

const PORT: u16 = 4_000;
const PATIENCE: Duration = Duration::from_secs(10);

struct Pair {
    first: Site,
    second: Site,
    link: Link,
}

fn pair(shape: Shape) -> Result<Option<Pair>> {
    let Some(network) = Network::new()? else { return Ok(None) };
    let (first, second) = (network.site("a")?, network.site("b")?);
    let link = network.join(&first, &second, shape, 1)?;
    Ok(Some(Pair { first, second, link }))
}

impl Pair {
    fn sockets(&self) -> Result<(UdpSocket, UdpSocket)> {
        let bind = |site: &Site| site.run(|| UdpSocket::bind((site.address(), PORT)));
        let (here, there) = (bind(&self.first)??, bind(&self.second)??);
        here.connect((self.second.address(), PORT))?;
        there.connect((self.first.address(), PORT))?;
        here.set_read_timeout(Some(PATIENCE))?;
        there.set_read_timeout(Some(PATIENCE))?;
        Ok((here, there))
    }

    /// Bytes of a second of one TCP connection from the first site to the second.
    fn throughput(&self, bytes: usize) -> Result<f64> {
        let listener = self.second.run(|| TcpListener::bind((self.second.address(), PORT)))??;
        let sending = self.first.run(|| TcpStream::connect((self.second.address(), PORT)))??;
        let (mut receiving, _) = listener.accept()?;
        let sender = std::thread::spawn(move || -> std::io::Result<()> {
            let mut sending = sending;
            let block = vec![7; 1 << 20];
            (0..bytes / block.len()).try_for_each(|_| sending.write_all(&block))
        });
        let began = Instant::now();
        let mut received = 0;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = receiving.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            assert!(buffer[..read].iter().all(|byte| *byte == 7));
            received += read;
        }
        sender.join().unwrap()?;
        assert_eq!(received, bytes);
        Ok(received as f64 / began.elapsed().as_secs_f64())
    }
}

#[test]
fn a_round_trip_takes_as_long_as_the_shape_says() -> Result<()> {
    let Some(pair) = pair(Shape { delay_micros: 25_000, ..Shape::default() })? else { return Ok(()) };
    let (here, there) = pair.sockets()?;
    let mut times = Vec::new();
    for number in 0..20u8 {
        let began = Instant::now();
        here.send(&[number])?;
        let mut byte = [0];
        there.recv(&mut byte)?;
        there.send(&byte)?;
        here.recv(&mut byte)?;
        assert_eq!(byte, [number]);
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    assert!(times[0] >= 50.0, "nothing is faster than the link: {times:?}");
    assert!(times[10] < 60.0, "half of all are as fast as it: {times:?}");
    Ok(())
}

#[test]
fn as_many_packets_are_lost_as_the_shape_says_and_the_others_keep_their_order() -> Result<()> {
    let Some(pair) = pair(Shape::default().with_loss(0.1))? else { return Ok(()) };
    let (here, there) = pair.sockets()?;
    // As many at a time as a socket holds.
    let mut last = 0u32;
    for round in 0..100u32 {
        for number in 0..100 {
            here.send(&(round * 100 + number + 1).to_be_bytes())?;
        }
        let offered = u64::from(round + 1) * 100;
        let began = Instant::now();
        let settled = || {
            let carried = pair.link.carried()[0];
            (carried.offered == offered && carried.delivered + carried.lost == offered).then_some(carried.delivered)
        };
        let delivered = loop {
            match settled() {
                Some(delivered) => break delivered,
                None => assert!(began.elapsed() < PATIENCE, "{:?}", pair.link.carried()),
            }
            std::thread::yield_now();
        };
        there.set_nonblocking(true)?;
        let mut buffer = [0; 4];
        while there.recv(&mut buffer).is_ok() {
            let number = u32::from_be_bytes(buffer);
            assert!(number > last, "{number} after {last}");
            last = number;
        }
        assert!(delivered <= offered);
    }
    let carried = pair.link.carried()[0];
    assert!((850..1_150).contains(&carried.lost), "{carried:?}");
    Ok(())
}

#[test]
fn a_connection_gets_the_rate_and_no_more() -> Result<()> {
    let Some(pair) = pair(Shape::wide_area(20_000_000, 10_000))? else { return Ok(()) };
    // A machine that is held up makes one slow, never one faster than the link.
    for left in (0..5).rev() {
        let rate = pair.throughput(4 << 20)? * 8.0 / 1e6;
        assert!(rate <= 20.2, "{rate} Mbit/s");
        if rate >= 12.0 {
            return Ok(());
        }
        assert!(left > 0, "none of five gets more than {rate} Mbit/s");
    }
    Ok(())
}

#[test]
fn what_tcp_sends_over_a_lossy_link_with_bundles_arrives_whole() -> Result<()> {
    let shape = Shape { reorder: 0.001, ..Shape::default().with_loss(0.002) };
    let Some(pair) = pair(shape)? else { return Ok(()) };
    pair.throughput(32 << 20)?;
    let carried = pair.link.carried()[0];
    assert!(carried.lost > 10, "{carried:?}");
    assert!(carried.offered > 20_000, "segments are counted, not bundles: {carried:?}");
    Ok(())
}

#[test]
fn a_cut_link_carries_nothing_until_it_is_mended() -> Result<()> {
    let Some(pair) = pair(Shape::default())? else { return Ok(()) };
    let (here, there) = pair.sockets()?;
    let mut byte = [0];
    pair.link.cut();
    there.set_read_timeout(Some(Duration::from_millis(100)))?;
    here.send(&[1])?;
    assert!(there.recv(&mut byte).is_err());
    pair.link.mend();
    there.set_read_timeout(Some(PATIENCE))?;
    here.send(&[2])?;
    there.recv(&mut byte)?;
    assert_eq!(byte, [2]);
    Ok(())
}

#[test]
fn damage_reaches_the_program_that_receives() -> Result<()> {
    let Some(pair) = pair(Shape { damage: 1.0, ..Shape::default() })? else { return Ok(()) };
    let (here, there) = pair.sockets()?;
    here.send(&[0; 100])?;
    let mut bytes = [0; 100];
    there.recv(&mut bytes)?;
    assert_eq!(bytes.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
    Ok(())
}
