package packet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/backoff"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// Client keeps a link to one server: it connects, asks for the link, serves it, and
// does so again when it has ended, for as long as Run runs.
//
//	Run ──► connecting ──► link ──Serve── lost ──► back-off ──► connecting
//
// Dial and Serve must be set. The fields must not be changed after the first
// use.
type Client struct {
	// Dial connects to the server, or to it through whatever stands before it:
	// see connect.Dialer.
	Dial func(ctx context.Context) (net.Conn, error)
	// TLS is done over what Dial returns; nil means that Dial has done it, or that
	// there is none. Leave it to the Client where possible: it writes and reads
	// several records of TLS at a time then. ALPN is always http/1.1, and an
	// empty ServerName is the host of Host.
	TLS *tls.Config
	// Host is the server's name in the request, host or host:port. Empty means
	// "packets".
	Host string
	// Header is sent along with the request.
	Header http.Header
	// Token, if set, gives the bearer token for each connection. It is sent over
	// TLS only.
	Token func(ctx context.Context) (string, error)
	// Hello is what the client says of itself. A zero ID is drawn once for each
	// Run; a client of several servers has one for all.
	Hello Hello
	// Serve uses a link until it ends: [Pump], bond.Bond or bond.Election. It owns
	// the link, runs it, and has closed it when it returns.
	Serve func(ctx context.Context, c *Conn) error
	// Conn says when a link is dead and the like. Nil means the defaults. Its Admit
	// is not used.
	Conn *ConnOptions
	// ConnectTimeout bounds each try to connect, from the first packet to
	// HELLO, by default 10 s. Negative means no bound.
	ConnectTimeout time.Duration
	// Head bounds the head of the answer, by default 10 s and 64 KiB.
	Head connect.HeadLimits
	// Backoff is how long to wait between tries.
	Backoff Backoff
	// OnState, if not nil, is told of each link that begins, with a nil error, and of each
	// try and each link that fails. It must not block.
	OnState func(c *Conn, err error)
	// Logger gets one line per event. Nil means silent.
	Logger *slog.Logger
}

// Backoff is how long a [Client] waits between tries to connect: a random time
// between zero and a bound, which is the time since the first failure, but at
// least Min and at most Max. Zero fields mean the default. Links that were shorter
// than Reset count as failures.
type Backoff struct {
	// Min is the least bound, by default 0.2 s.
	Min time.Duration
	// Max is the largest bound, by default 10 s.
	Max time.Duration
	// Reset is how long a link must have lasted to start again at Min, by default
	// one minute. Negative means that each link does.
	Reset time.Duration
}

// Waits of a client that was told to stay away.
const (
	refusedWait  = 10 * time.Second // at most, and half of it at least
	mismatchWait = time.Minute      // one half to three halves of it
)

// Run keeps the link until ctx ends, and returns its cause. A configuration that
// cannot work is an error at once.
func (k *Client) Run(ctx context.Context) error {
	hello := k.Hello.withDefaults()
	if err := hello.check(); err != nil {
		return err
	}
	if k.Dial == nil || k.Serve == nil {
		return errors.New("packet: client without Dial or Serve")
	}
	log := k.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	policy := backoff.Policy(k.Backoff).WithDefaults()
	var outage backoff.Outage
	last := ""
	for {
		c, err := k.connect(ctx, hello)
		lasted := time.Duration(0)
		if err == nil {
			last = ""
			start := time.Now()
			log.Info("link up", "server", c.RemoteAddr().String(), "name", c.Remote().Name, "mtu", c.MTU(), "offload", c.Remote().Offload.String())
			k.tell(c, nil)
			err = k.serve(ctx, c)
			lasted = time.Since(start)
			log.Info("link down", "error", err, "lasted", lasted.Round(time.Millisecond))
			k.tell(c, err)
		} else {
			if text := err.Error(); text != last && ctx.Err() == nil { // once for each reason
				last = text
				log.Warn("no link", "error", err)
			}
			k.tell(nil, err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		outage.Ended(policy, lasted)
		wait := outage.Failed(policy, time.Now())
		if !wasAdmitted(err, lasted) {
			wait = max(wait, stayAway(err))
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (k *Client) tell(c *Conn, err error) {
	if k.OnState != nil {
		k.OnState(c, err)
	}
}

// serve has the link used.
func (k *Client) serve(ctx context.Context, c *Conn) error {
	defer c.Close()
	err := k.Serve(ctx, c)
	// What the link itself knows says more than what its user made of it.
	if cause := c.failure(); cause != nil && !errors.Is(cause, net.ErrClosed) {
		return cause
	}
	if err == nil {
		err = errClosed
	}
	return err
}

// wasAdmitted reports whether a link was denied that had been admitted before: as a rule
// its credential has run out, and there is a new one for the next link.
func wasAdmitted(err error, lasted time.Duration) bool {
	var said *ByeError
	return errors.As(err, &said) && said.Code == ByeDenied && said.RetryAfter == 0 && lasted > refusedWait
}

// stayAway is how long a client keeps away at least after an error.
func stayAway(err error) time.Duration {
	var refused *connect.Error
	var said *ByeError
	switch {
	case errors.As(err, &said):
		return max(min(said.RetryAfter, time.Hour), waitAfter(said.Code))
	case errors.As(err, &refused) && refused.Answered(), errors.As(err, &refused) && refused.RetryAfter > 0:
		wait := min(refused.RetryAfter, time.Minute)
		if refused.Status == http.StatusUnauthorized || refused.Status == http.StatusForbidden {
			wait = max(wait, waitAfter(ByeDenied))
		} else if refused.Status == http.StatusUpgradeRequired {
			wait = max(wait, waitAfter(ByeVersion))
		}
		return wait
	}
	return 0
}

// waitAfter is how long a client keeps away after a BYE: at random, so that two who take
// the place from each other, or thousands who are refused, do not come together.
func waitAfter(code string) time.Duration {
	switch code {
	case ByeReplaced, ByeVersion, ByeMismatch:
		return mismatchWait/2 + rand.N(mismatchWait)
	case ByeDenied, ByeFull:
		return refusedWait/2 + rand.N(refusedWait/2)
	}
	return 0
}

var errSlow error = timeoutError("packet: no link in time")

// connect makes a link.
func (k *Client) connect(ctx context.Context, hello Hello) (*Conn, error) {
	if timeout := orDefault(k.ConnectTimeout, 10*time.Second); timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, errSlow)
		defer cancel()
	}
	raw, err := k.Dial(ctx)
	if err != nil {
		return nil, orCause(ctx, err)
	}
	relay.KeepAlive(raw)
	shortQueue(raw)
	c, o := raw, k.Conn.withDefaults()
	o.Admit = nil
	if k.TLS != nil {
		c = tls.Client(newSocket(raw, o.WriteTimeout), k.clientTLS())
	}
	stop := context.AfterFunc(ctx, func() { closeBelow(c) })
	early, err := k.request(ctx, c)
	if !stop() || err != nil {
		closeBelow(c)
		return nil, orCause(ctx, err)
	}
	return Handshake(ctx, withEarly(c, early), hello, &o)
}

// orCause is err, or the cause of ctx if that has ended.
func orCause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// withEarly gives back to a connection what was read of it beyond the head.
func withEarly(c net.Conn, early []byte) net.Conn {
	if len(early) == 0 {
		return c
	}
	return relay.NewPrefixed(c, early)
}

func (k *Client) host() string {
	if k.Host == "" {
		return "packets"
	}
	return k.Host
}

// clientTLS is TLS with what suits packets.
func (k *Client) clientTLS() *tls.Config {
	config := k.TLS.Clone()
	config.NextProtos = []string{"http/1.1"}
	config.DynamicRecordSizingDisabled = true
	if config.ServerName == "" {
		config.ServerName = k.host()
		if host, _, err := net.SplitHostPort(k.host()); err == nil {
			config.ServerName = host
		}
	}
	return config
}

// request asks for a link.
func (k *Client) request(ctx context.Context, c net.Conn) (early []byte, err error) {
	t, encrypted := c.(interface{ HandshakeContext(context.Context) error })
	if encrypted {
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, err
		}
	}
	r := &connect.Request{Host: k.host(), Header: k.Header.Clone()}
	if k.Token != nil {
		if !encrypted {
			return nil, errors.New("packet: a bearer token is sent over TLS only")
		}
		token, err := k.Token(ctx)
		if err != nil {
			return nil, fmt.Errorf("packet: bearer token: %w", err)
		}
		if r.Header == nil {
			r.Header = make(http.Header)
		}
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return protocol().Request(c, r, &k.Head)
}
