"""Dense landmarks, the mesh's topology, pose, age and gender."""

import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.face import attributes, landmarks
from likeness.face.attributes import annotate
from likeness.face.errors import BadInput, BadModelFile, MissingModel
from likeness.face.geometry import inverse, quarter_turns, transform
from likeness.face.host import STANDALONE, StandaloneHost
from likeness.face.landmarks import landmark, to_picture, upright_square
from likeness.face.landmarks.topology import (
    EYES,
    FROM_68,
    LEFT_BROW,
    LEFT_EYE,
    LIPS_INNER,
    LIPS_OUTER,
    MEAN,
    MIRROR,
    MOUTH,
    NOSE,
    NOSE_TIP,
    OVAL,
    RIGHT_BROW,
    RIGHT_EYE,
    TRIANGLES,
    five,
)
from likeness.face.models import catalogue, find
from likeness.face.pose import affine_rotation, angles, pose_of_68, pose_of_five, pose_of_mesh, rigid_rotation
from likeness.face.types import Face, Faces
from likeness.tests import tiny
from likeness.tests.photos import SHA256, found, picture


@pytest.fixture(scope="module", params=["mesh", "landmarks68"])
def landmarker(request):
    ready(request.param)
    return request.param


def ready(name):
    for card in catalogue.select(name):
        try:
            find(card, STANDALONE)
        except MissingModel as error:
            pytest.skip(str(error))


def turn(x=0.0, y=0.0, z=0.0):
    """Rz Ry Rx for degrees."""
    (cx, sx), (cy, sy), (cz, sz) = ((math.cos(math.radians(a)), math.sin(math.radians(a))) for a in (x, y, z))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def head(yaw=0.0, pitch=0.0, roll=0.0, size=120.0):
    """The mean head in pixels, turned as ``Pose`` says."""
    return (MEAN @ turn(-pitch, -yaw, roll).T * size + [400, 300, 0]).astype(np.float32)


def signed_areas(mesh):
    a, b, c = (mesh[TRIANGLES[:, k], :2].astype(np.float64) for k in range(3))
    return np.cross(np.pad(b - a, ((0, 0), (0, 1))), np.pad(c - a, ((0, 0), (0, 1))))[:, 2] / 2


def mesh_of(name):
    return landmark(picture(name), found(name))[0][0]


# The network on photographs


@pytest.mark.parametrize("name", SHA256)
def test_the_mesh_lies_on_the_face(name):
    ready("mesh")
    face = mesh_of(name)
    mesh = face.landmarks[468]
    assert mesh.shape == (468, 3)
    assert np.abs(five(mesh) - face.points).max() < 0.12 * face.width
    low, high = mesh[:, :2].min(0), mesh[:, :2].max(0)
    assert np.abs((low + high) / 2 - face.centre).max() < 0.12 * face.width
    assert mesh[NOSE_TIP, 2] < mesh[list(OVAL), 2].min()


@pytest.mark.parametrize("name", SHA256)
def test_on_upright_photographs_hardly_a_triangle_is_folded(name):
    ready("mesh")
    areas = signed_areas(mesh_of(name).landmarks[468])
    assert -areas[areas < 0].sum() < 0.02 * areas.sum()
    assert (areas < 0).mean() < 0.05


def test_68_points_agree_with_the_mesh():
    ready("landmarks68")
    ready("mesh")
    for name in SHA256:
        faces = landmark(picture(name), landmark(picture(name), found(name)), "landmarks68")
        face = faces[0][0]
        mesh = face.landmarks[468][list(FROM_68), :2]
        eyes = np.linalg.norm(mesh[36] - mesh[45])
        assert np.linalg.norm(face.landmarks[68] - mesh, axis=1)[17:].mean() < 0.09 * eyes


def test_all_faces_of_a_picture_go_through_in_one_batch(landmarker, monkeypatch):
    from likeness.face.session import OnnxModel

    image, one = picture("person_b_1"), found("person_b_1")[0][0]
    shifted = one.moved(lambda p: p + np.array([3, -2], np.float32))
    sizes = []
    real = OnnxModel.run
    monkeypatch.setattr(
        OnnxModel, "run", lambda self, feeds, *a: sizes.append(len(*feeds.values())) or real(self, feeds, *a)
    )
    together = landmark(image, Faces(((one, shifted),), found("person_b_1").sizes), landmarker)[0]
    assert sizes == [2]
    alone = landmark(image, found("person_b_1"), landmarker)[0][0]
    for scheme, points in alone.landmarks.items():
        assert np.abs(together[0].landmarks[scheme] - points).max() < 0.01


def test_a_face_that_carries_the_landmarks_is_left_alone(landmarker):
    faces = landmark(picture("person_a_2"), found("person_a_2"), landmarker)
    assert landmark(picture("person_a_2"), faces, landmarker)[0][0] is faces[0][0]


def test_where_the_mesh_sees_no_face_it_says_so_and_adds_nothing(caplog):
    ready("mesh")
    box = np.array([20, 20, 120, 120], np.float32)
    nothing = Face(box, pose_points(box), 0.9)
    with caplog.at_level(logging.DEBUG, "likeness"):
        faces = landmark(torch.zeros(1, 140, 140, 3), Faces(((nothing,),), ((140, 140),)))
    assert 468 not in faces[0][0].landmarks
    assert "sees no face" in caplog.text
    assert faces[0][0].pose is not None


def pose_points(box):
    from likeness.face.geometry import ARCFACE_112

    return (ARCFACE_112 / 112 * (box[2] - box[0]) + box[:2]).astype(np.float32)


def test_no_face_is_legal_and_the_batch_keeps_its_length(landmarker):
    faces = landmark(torch.zeros(3, 16, 16, 3), Faces(((), (), ()), ((16, 16),) * 3), landmarker)
    assert faces.images == ((), (), ())


def test_faces_of_another_batch_are_refused():
    with pytest.raises(BadInput, match="come from 1 pictures, but the image has 2"):
        landmark(torch.zeros(2, 16, 16, 3), Faces(((),), ((16, 16),)))
    with pytest.raises(BadInput, match="come from 1 pictures, but the image has 2"):
        annotate(torch.zeros(2, 16, 16, 3), Faces(((),), ((16, 16),)))


@pytest.mark.parametrize("degrees", [-40, 25, 35])
def test_a_poor_eye_line_of_the_detector_does_not_tilt_the_mesh(degrees):
    ready("mesh")
    good = mesh_of("person_b_1").landmarks[468]
    face = found("person_b_1")[0][0]
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    tilted = (face.points - face.centre) @ np.array([[c, s], [-s, c]]) + face.centre
    start = Faces(((Face(face.box, tilted.astype(np.float32), 0.9),),), found("person_b_1").sizes)
    mesh = landmark(picture("person_b_1"), start)[0][0].landmarks[468]
    eyes = np.linalg.norm(good[33] - good[263])
    assert np.linalg.norm((mesh - good)[:, :2], axis=1).mean() < 0.05 * eyes


# Topology


def test_triangles_fill_the_oval_without_fold_or_gap():
    areas = signed_areas(MEAN)
    oval = MEAN[list(OVAL), :2]
    whole = 0.5 * abs(np.sum(oval[:, 0] * np.roll(oval[:, 1], -1) - oval[:, 1] * np.roll(oval[:, 0], -1)))
    assert abs(areas.sum() - whole) < 1e-6 * whole
    assert -areas[areas < 0].sum() < 0.01 * whole
    assert TRIANGLES.shape == (898, 3)
    assert set(np.unique(TRIANGLES)) == set(range(468))


def test_every_inner_edge_has_two_triangles_and_the_oval_one():
    edges = {}
    for a, b, c in TRIANGLES.tolist():
        for edge in ((a, b), (b, c), (c, a)):
            edges[edge] = edges.get(edge, 0) + 1
    assert set(edges.values()) == {1}
    border = {edge for edge in edges if edge[::-1] not in edges}
    ring = set(zip(OVAL, (*OVAL[1:], OVAL[0]), strict=True))
    assert border == ring


def test_mouth_and_eyes_are_cut_out_along_their_rings():
    for ring, inside in ((LIPS_INNER, MOUTH), (LEFT_EYE, EYES), (RIGHT_EYE, EYES)):
        chosen = TRIANGLES[inside & np.isin(TRIANGLES, ring).all(1)]
        assert len(chosen) == len(ring) - 2
        assert set(chosen.ravel()) == set(ring)
    assert EYES.sum() == 28
    assert not (EYES & MOUTH).any()


def test_mirroring_swaps_the_sides_and_keeps_the_middle():
    assert (MIRROR[MIRROR] == np.arange(468)).all()
    assert [MIRROR[i] for i in LEFT_EYE] == list(RIGHT_EYE)
    assert [MIRROR[i] for i in LEFT_BROW] == list(RIGHT_BROW)
    for ring in (OVAL, LIPS_OUTER, LIPS_INNER, NOSE):
        assert set(MIRROR[list(ring)]) == set(ring)
    assert np.abs(MEAN[MIRROR] * [-1, 1, 1] - MEAN).max() < 1e-6
    mirrored = {tuple(sorted(MIRROR[t])) for t in TRIANGLES}
    assert mirrored == {tuple(sorted(t)) for t in TRIANGLES.tolist()}


def test_left_is_the_viewers_left():
    assert MEAN[list(LEFT_EYE), 0].max() < 0 < MEAN[list(RIGHT_EYE), 0].min()
    assert MEAN[list(LEFT_BROW), 1].max() < MEAN[list(LEFT_EYE), 1].mean() < MEAN[list(LIPS_OUTER), 1].min()


# Pose


@settings(max_examples=60, deadline=None)
@given(st.floats(-60, 60), st.floats(-45, 45), st.floats(-170, 170))
def test_the_pose_of_a_turned_head_is_how_it_was_turned(yaw, pitch, roll):
    mesh = head(yaw, pitch, roll)
    for pose, points in ((pose_of_mesh(mesh), mesh), (pose_of_68(mesh[list(FROM_68)]), mesh)):
        assert abs(pose.yaw - yaw) < 0.1
        assert abs(pose.pitch - pitch) < 0.1
        assert abs((pose.roll - roll + 180) % 360 - 180) < 0.1, points


def test_signs_mean_what_the_record_says():
    nose = NOSE_TIP
    assert head(yaw=20)[nose, 0] > head()[nose, 0]
    assert head(pitch=20)[nose, 1] < head()[nose, 1]
    assert head(roll=20)[RIGHT_EYE[0], 1] > head()[RIGHT_EYE[0], 1]


@settings(max_examples=40, deadline=None)
@given(st.floats(-35, 35), st.floats(-60, 60))
def test_five_points_tell_yaw_and_roll_of_a_turned_head(yaw, roll):
    pose = pose_of_five(five(head(yaw, 0, roll)))
    assert abs(pose.yaw - yaw) < 6
    assert abs(pose.roll - roll) < 3


def test_five_points_look_straight_ahead_in_the_template():
    from likeness.face.geometry import ARCFACE_112

    pose = pose_of_five(ARCFACE_112)
    assert abs(pose.roll - -0.3169) < 1e-3
    assert abs(pose.yaw) < 0.01
    assert abs(pose.pitch) < 0.2
    assert pose_of_five(np.zeros((5, 2))).yaw == 0


@pytest.mark.parametrize("name", SHA256)
def test_mirroring_a_photograph_flips_yaw_and_roll(name):
    ready("mesh")
    image = picture(name)
    plain = mesh_of(name).pose
    face = found(name)[0][0]
    width = image.shape[2]
    flip = np.array([-1, 1], np.float32)
    points = (face.points * flip + [width - 1, 0])[[1, 0, 2, 4, 3]].astype(np.float32)
    box = np.array([width - 1 - face.box[2], face.box[1], width - 1 - face.box[0], face.box[3]], np.float32)
    pose = landmark(image.flip(2), Faces(((Face(box, points, 0.9),),), found(name).sizes))[0][0].pose
    # The network itself is not symmetric: between a picture and its mirror image it moves by 2.5 degrees on average.
    assert abs(pose.yaw + plain.yaw) < 7
    assert abs(pose.pitch - plain.pitch) < 7
    assert abs(pose.roll + plain.roll) < 4


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turning_a_photograph_adds_to_the_roll_alone(turns):
    ready("mesh")
    image = picture("person_b_2")
    plain = mesh_of("person_b_2").pose
    face = found("person_b_2")[0][0].moved(lambda p: quarter_turns(p, turns, *image.shape[1:3]))
    turned = torch.rot90(image, turns, (1, 2))
    pose = landmark(turned, Faces(((face,),), (tuple(turned.shape[1:3]),)))[0][0].pose
    assert abs((pose.roll - plain.roll + 90 * turns + 180) % 360 - 180) < 4
    assert abs(pose.yaw - plain.yaw) < 4
    assert abs(pose.pitch - plain.pitch) < 4


def test_angles_of_the_reference_note():
    about = angles(turn(math.degrees(0.1), math.degrees(0.2), math.degrees(0.3)))
    assert np.allclose(about, (5.72958, 11.45916, 17.18873), atol=1e-4)


def test_an_affine_camera_ignores_depth_and_a_rigid_fit_size_and_place():
    shape = head(10, -5, 20)
    flat = affine_rotation(MEAN, shape * [1, 1, 0])
    assert np.allclose(flat, affine_rotation(MEAN, shape))
    assert np.allclose(rigid_rotation(MEAN, shape), rigid_rotation(MEAN, shape * 3 + 7), atol=1e-5)
    assert np.isclose(np.linalg.det(rigid_rotation(MEAN, shape)), 1)


# Crops


def test_points_go_to_the_crop_and_back():
    face = Face(np.array([40, 30, 140, 170], np.float32), pose_points(np.array([40, 30, 140, 170])), 0.9)
    matrix = upright_square(face, 192, 1.5, turned=True)
    inside = transform(matrix, face.points)
    assert abs(inside[0, 1] - inside[1, 1]) < 1e-3
    assert np.allclose(transform(inverse(matrix), inside), face.points, atol=1e-3)
    assert np.allclose(transform(matrix, face.centre[None]), 96, atol=1e-3)
    with_depth = np.column_stack([inside, np.ones(5)])
    assert np.allclose(to_picture(matrix, with_depth)[:, 2], 140 * 1.5 / 192, atol=1e-4)


# Age and gender


def test_age_and_gender_of_the_photographs():
    ready("age-gender")
    guesses = {name: annotate(picture(name), found(name))[0][0] for name in SHA256}
    assert {name for name, face in guesses.items() if face.gender == "female"} == {"person_b_1", "person_b_2"}
    # Born 1977, photographed 2014 and 2025; the networks are good to about eight years.
    assert abs(guesses["person_a_1"].age - 37) < 9
    assert abs(guesses["person_a_2"].age - 47) < 9
    assert guesses["person_a_2"].age > guesses["person_a_1"].age


def test_faces_with_age_and_gender_are_left_alone():
    ready("age-gender")
    faces = annotate(picture("person_a_2"), found("person_a_2"))
    assert annotate(picture("person_a_2"), faces)[0][0] is faces[0][0]


# What goes wrong


@pytest.mark.parametrize(("stage", "name"), [("mesh", "mesh"), ("landmarks68", "landmarks68"), ("age-gender", "age")])
def test_missing_files_name_the_command(tmp_path, stage, name):
    here = StandaloneHost(tmp_path)
    with pytest.raises(MissingModel, match="models fetch"):
        attributes.network(stage, here) if stage == "age-gender" else landmarks.networks(stage, here)


@pytest.mark.parametrize(("name", "file"), [("mesh", "face_mesh.onnx"), ("landmarks68", "landmarks68.onnx")])
def test_another_kind_of_file_is_refused(tmp_path, name, file):
    tiny.recogniser(tmp_path / "likeness" / file)
    with pytest.raises(BadModelFile, match=r"is not the (face mesh|68-point network)"):
        landmarks.networks(name, StandaloneHost(tmp_path))


def test_unknown_names_list_what_there_is(tmp_path):
    here = StandaloneHost(tmp_path)
    with pytest.raises(BadInput, match=r"no landmarker called 'mosh'. Known: mesh"):
        landmarks.networks("mosh", here)
    with pytest.raises(BadInput, match=r"no attribute network called 'x'. Known: age-gender"):
        attributes.network("x", here)
    with pytest.raises(BadInput, match="no model pack with a landmark network"):
        landmarks.networks("insightface", here)
    assert landmarks.choices(here) == ["mesh", "landmarks68"]
    assert attributes.choices(here) == ["age-gender"]
