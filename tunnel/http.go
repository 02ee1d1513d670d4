package tunnel

import (
	"bufio"
	"context"
	"maps"
	"net"
	"net/http"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/upgrade"
)

// ServeHTTP serves both doors within an http.Server, for who has one already.
// Prefer Serve: it has what an http.Server cannot give. Mind that
//
//   - http.ServeMux answers CONNECT with 404: the Server must be the handler
//     itself, or stand behind one of yours that looks at the method;
//   - the http.Server must not offer HTTP/2, and its time-outs hold for the
//     request head;
//   - both doors take over the connection, which http.Server.Shutdown forgets:
//     call Shutdown of this Server as well;
//   - a client whose credential no longer holds is not cut off.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, err := s.begin()
	if err != nil {
		http.Error(w, errDraining.Error(), http.StatusServiceUnavailable)
		return
	}
	defer s.work.Done()
	d := s.mountedDoor()
	p := &Peer{RemoteAddr: addrOf(r.RemoteAddr), TLS: r.TLS, Request: &connect.Request{
		Method: r.Method, Target: r.RequestURI, Proto: r.Proto, Host: r.Host, Header: r.Header,
	}}
	p.LocalAddr, _ = r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	log := s.logger().With("remote", r.RemoteAddr)
	if !upgrade.Is(p.Request) {
		h, leave, err := d.admitClient(p, log, func() {})
		if err != nil {
			d.refused.Warn("request refused", "remote", r.RemoteAddr, "error", err)
			res := connect.Classify(err).Response(s.id())
			maps.Copy(w.Header(), res.Header)
			w.WriteHeader(res.Status)
			_, _ = w.Write(res.Early)
			return
		}
		defer leave()
		// The proxy ends with the server, not only with the request.
		both, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		defer context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })()
		h.ServeHTTP(w, r.WithContext(both))
		return
	}
	c, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "a session needs HTTP/1.1", http.StatusHTTPVersionNotSupported)
		return
	}
	_ = c.SetDeadline(time.Time{})
	p.Request.Early = unread(buffered.Reader)
	if err := d.serveAgent(ctx, c, p, log, func() {}); err != nil {
		d.refuse(c, err)
	}
}

// mountedDoor is the one door of ServeHTTP.
func (s *Server) mountedDoor() *door {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mounted == nil {
		s.mounted = newDoor(s, nil, Door{})
	}
	return s.mounted
}

// unread is what a hijacked connection's reader holds.
func unread(r *bufio.Reader) []byte {
	b := make([]byte, r.Buffered())
	n, _ := r.Read(b)
	return b[:n]
}

// addrOf is an address that is known as text only.
type addrOf string

func (addrOf) Network() string  { return "tcp" }
func (a addrOf) String() string { return string(a) }
